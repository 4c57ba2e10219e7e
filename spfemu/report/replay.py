# SPDX-License-Identifier: MIT
"""What `spfemu replay` prints: maps, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spfemu.replay.outcome import Outcome
from spfemu.trace import maps

SHOWN_MAPS = 5
"""Maps that differ are shown for so many processes."""


def final_maps(outcome: Outcome) -> str:
    """Return the maps at the end, each with a heading if there are several."""
    if len(outcome.finals) == 1:
        return maps.text(outcome.finals[0].mappings)
    return "".join(f"# maps {f.pid} final\n{maps.text(f.mappings)}" for f in outcome.finals)


def summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the summary; the calls are those of the first replay."""
    first = outcomes[0]
    yield _headline(first)
    yield from _calls(first)
    yield from _agreement(first)
    for outcome in outcomes:
        yield from _faults(outcome)
        if outcome is not first and outcome.different != first.different:
            yield f"  {outcome.protocol}: {outcome.different.total()} results differ"
        yield from (f"violation: {text}" for text in outcome.violations)


def _plural(count: int, what: str, many: str = "") -> str:
    return f"{count:,} {what if count == 1 else many or what + 's'}"


def _headline(outcome: Outcome) -> str:
    processes = _plural(outcome.processes, "process", "processes")
    text = (
        f"replayed {_plural(outcome.calls.total(), 'call')} of {processes} and "
        f"{_plural(outcome.threads, 'thread')} in {outcome.seconds:.2f} s"
    )
    if outcome.recorded_seconds is not None:
        text += f", recorded in {outcome.recorded_seconds:.2f} s"
    return text + (", interrupted" if outcome.partial else "")


def _calls(outcome: Outcome) -> Iterator[str]:
    yield f"{'call':<12}{'calls':>10}{'failed':>10}{'other result':>15}"
    for name, count in outcome.calls.most_common():
        failed, different = outcome.failed[name], outcome.different[name]
        yield f"{name:<12}{count:>10,}{failed:>10,}{different:>15,}"
    yield from outcome.differences
    kept = len(outcome.differences)
    if outcome.different.total() > kept:
        yield f"and {outcome.different.total() - kept:,} more"
    for name, count in outcome.skipped.items():
        yield f"not replayed: {count:,} {name}"


def _agreement(outcome: Outcome) -> Iterator[str]:
    if outcome.chosen:
        agreed = outcome.chosen - outcome.moved
        yield f"places: {agreed:,} of {outcome.chosen:,} that the kernel chose are also chosen here"
        yield from outcome.places
    if outcome.compared:
        agreed = len(outcome.compared) - len(outcome.disagreeing)
        yield f"final maps: {agreed:,} of {len(outcome.compared):,} are the recorded ones"
    else:
        yield "final maps: none is recorded to compare with"
    for final in outcome.disagreeing[:SHOWN_MAPS]:
        yield f"process {final.pid} differs (- recorded, + replayed):"
        assert final.difference is not None
        yield from final.difference.lines()


def _faults(outcome: Outcome) -> Iterator[str]:
    text = f"{outcome.protocol}: {_plural(outcome.events['PGFAULT'], 'fault')}"
    if outcome.speculation is None:
        text += ", none tried without the mmap lock"
    else:
        text += f", speculation {outcome.speculation:.1%} of {outcome.attempts:,}"
    yield text
    if outcome.aborts:
        yield "  " + ", ".join(f"{name} {count:,}" for name, count in outcome.aborts.items())
    if outcome.touch_failed:
        why = ", for want of frames" if outcome.short_of_frames else ""
        yield f"  {_plural(outcome.touch_failed, 'touch', 'touches')} failed{why}"


def as_record(outcome: Outcome) -> dict[str, Any]:
    """Return what goes into JSON."""
    return {
        "protocol": outcome.protocol,
        "processes": outcome.processes,
        "threads": outcome.threads,
        "calls": dict(outcome.calls),
        "failed": dict(outcome.failed),
        "different": dict(outcome.different),
        "differences": outcome.differences,
        "places_chosen": outcome.chosen,
        "places_differ": outcome.moved,
        "places": outcome.places,
        "maps_compared": len(outcome.compared),
        "maps_differ": len(outcome.disagreeing),
        "faults": outcome.events["PGFAULT"],
        "touches_failed": outcome.touch_failed,
        "speculative_attempts": outcome.attempts,
        "speculation": outcome.speculation,
        "aborts": outcome.aborts,
        "not_replayed": dict(outcome.skipped),
        "problems": outcome.problems,
        "violations": outcome.violations,
        "recorded_seconds": outcome.recorded_seconds,
        "replay_seconds": outcome.seconds,
        "partial": outcome.partial,
    }
