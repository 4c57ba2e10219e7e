# SPDX-License-Identifier: MIT
"""What a hunt came to, as text and as JSON; and the report of a broken promise, to replay it.

A report is data: reading one runs nothing.  It names the overrides that the hunt was made with by
path and hash; who replays it decides to load them, by giving them again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from spfemu.errors import UsageError
from spfemu.layout import layout_hash
from spfemu.results import JSON_ERRORS, Override, Partial, read_json
from spfemu.stress.hunt import HuntPlan, HuntResult
from spfemu.stress.stepping import Reproduced

SCHEMA = "spfemu-stress-2"
REPORT_SCHEMA = "spfemu-stress-report-1"


class Verdict(msgspec.Struct, frozen=True):
    """A broken promise: its name, what found it, and two sentences on it."""

    promise: str
    check: str
    text: str
    round_seed: int


class Hunted(msgspec.Struct, frozen=True):
    """What a hunt in one protocol came to; see `spfemu.stress.hunt.HuntResult`."""

    protocol: str
    seed: int
    rounds: int
    operations: int
    seconds: float
    operations_per_second: float
    copies: int
    torn: int
    rejected: int
    escaped: int
    events: dict[str, int]
    violation: Verdict | None
    too_weak: str | None
    partial: Partial | None


class Results(msgspec.Struct, frozen=True):
    """What ``spfemu stress --json`` writes."""

    schema: str
    results: list[Hunted]
    partial: Partial | None
    """What ended it before it was done, in the last result or before the next protocol."""


class Report(msgspec.Struct, frozen=True):
    """What is needed to repeat the round that broke a promise."""

    schema: str
    layout_hash: int
    """Of the segment's structs: another version of spfemu may do other operations."""
    protocol: str
    workers: int
    writers: int
    seed: int
    """That of the round."""
    delays: bool
    overrides: list[Override]
    violation: Verdict


def hunted(result: HuntResult) -> Hunted:
    """Put a result into the form of the JSON."""
    return Hunted(
        protocol=result.protocol,
        seed=result.seed,
        rounds=result.rounds,
        operations=result.operations,
        seconds=result.seconds,
        operations_per_second=result.operations / result.seconds if result.seconds else 0.0,
        copies=result.copies,
        torn=result.torn,
        rejected=result.torn - result.escaped,
        escaped=result.escaped,
        events=dict(sorted(result.events.items())),
        violation=_verdict(result),
        too_weak=result.too_weak,
        partial=result.partial,
    )


def _verdict(result: HuntResult) -> Verdict | None:
    found = result.violation
    if found is None or result.round_seed is None:
        return None
    return Verdict(found.promise.name, found.check, str(found), result.round_seed)


def encode(results: list[HuntResult], partial: Partial | None) -> bytes:
    """Return the JSON of a whole hunt."""
    return _json(Results(SCHEMA, [hunted(r) for r in results], partial))


def encode_found(plan: HuntPlan, result: HuntResult) -> bytes:
    """Return the report of a broken promise."""
    verdict = _verdict(result)
    assert verdict is not None
    return _json(
        Report(
            REPORT_SCHEMA,
            layout_hash(),
            plan.protocol,
            plan.workers,
            plan.writers,
            verdict.round_seed,
            plan.delays,
            result.overrides,
            verdict,
        )
    )


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _sha256(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot read the override: {error.strerror}") from error


def read(path: str, overrides: tuple[str, ...], seconds: float) -> HuntPlan:
    """Return the plan that repeats a report's round; raises UsageError.

    `overrides` must be those that the report names, in their order and with the same contents.
    """
    content = read_json(path)
    try:
        report = msgspec.json.decode(content, type=Report)
    except JSON_ERRORS as error:
        raise UsageError(f"{path} is no report of spfemu stress: {error}") from error
    if report.schema != REPORT_SCHEMA:
        raise UsageError(f"{path} is no report of spfemu stress: its schema is {report.schema!r}")
    if report.layout_hash != layout_hash():
        raise UsageError(f"{path} was made by another version of spfemu: hunt again")
    named = [o.sha256 for o in report.overrides]
    if [_sha256(o) for o in overrides] != named:
        files = " ".join(f"--override {o.file}" for o in report.overrides) or "none"
        raise UsageError(
            f"{path} was made with other overrides: read them, then give the same files ({files})"
        )
    return HuntPlan(
        report.protocol,
        report.workers,
        report.writers,
        seconds,
        report.seed,
        overrides,
        report.delays,
        repeat=True,
    )


def stepped_text(found: Reproduced | None, seconds: float) -> str:
    """Say whether the stepped engine breaks the same promise, and how at its shortest."""
    if found is None:
        return f"the stepped engine did not break the same promise within {seconds:g} s"
    operations = sum(found.attempt.operations)
    return "\n".join(
        (
            "",
            found.history,
            f"the stepped engine breaks the same promise: {found.violation}",
            f"in {operations} operations and {len(found.attempt.turns)} turns: {found.schedule()}",
            f"(the shortest of {found.attempts:,} attempts)",
        )
    )


def text(result: HuntResult) -> str:
    """Say in a few lines what a hunt came to."""
    found = result.violation
    lines = []
    if found is not None:
        lines = [found.history, f"{found.promise.name}, seen by: {found.check}", str(found)]
    rate = result.operations / result.seconds if result.seconds else 0.0
    verdict = "no promise broken" if found is None else "a promise broken"
    rounds = f"{result.rounds:,} round{'' if result.rounds == 1 else 's'}"
    lines.append(
        f"{result.protocol}: {verdict} in {result.operations:,} operations, {rounds}, "
        f"{result.seconds:.1f} s ({rate:,.0f} operations/s)"
    )
    if result.copies:
        lines.append(
            f"copies of VMAs: {result.copies:,}, torn {result.torn:,}, of these rejected "
            f"{result.torn - result.escaped:,}, escaped {result.escaped:,}"
        )
    if result.partial is not None:
        lines.append("partial: only finished rounds count")
    races = ", ".join(f"{name} {count:,}" for name, count in result.races().most_common())
    if races:
        lines.append(f"faults that gave up because of a race: {races}")
    if result.too_weak:
        lines.append(f"too weak: {result.too_weak}")
    return "\n".join(lines)
