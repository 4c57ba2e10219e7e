# SPDX-License-Identifier: MIT
"""What the oracles and the delays of a stress run cost: the same mix without and with them.

A round takes a sample of each, one after the other, on the same machine in the same minute; ratios
are made round by round, as those of `spfemu scale`.  Waiting loops yield in all of them: a hunt has
more CPUs than cores, and would mostly measure who spins for whom.  ``scripts/stress-cost`` runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import click

from spfemu.cli.app import printable
from spfemu.cli.progress import progress
from spfemu.errors import ExitCode, SpfemuError
from spfemu.measure import build, statistics
from spfemu.measure.compare import USABLE_SHARE, Pair, Rounds, take_rounds
from spfemu.measure.plan import Plan, Progress, quiet
from spfemu.measure.probe import Prober, cycles_per_second
from spfemu.measure.run import Prepared, Sample, Segments, prepare, take_sample
from spfemu.segment import Segment
from spfemu.stress.delays import focus_sites, set_delays
from spfemu.stress.hunt import HANG_SECONDS, HuntPlan
from spfemu.stress.oracles import yielding
from spfemu.workloads.parameters import STRESS

CELLS = ("plain", "oracles", "oracles and delays")
PAIRS = (Pair(1, 0), Pair(2, 0), Pair(2, 1))
PROTOCOLS = "spf,classic"
ROUNDS = 9


@dataclass(frozen=True)
class _Delayed(Segments):
    """Segments in which CPUs delay as in a hunt."""

    segments: Segments
    prepared: Prepared

    def get(self, plan: Plan) -> Segment:
        segment = self.segments.get(plan)
        focus = focus_sites(self.prepared.program, self.prepared.engine.sites)
        set_delays(segment, plan.seed, cycles_per_second(), focus=focus)
        return segment


def measure(plan: Plan, rounds: int, show: Progress = quiet) -> Rounds:
    """Sample the mix plain, with oracles, and with oracles and delays, in turns."""
    watched = prepare(plan, show)
    delayed = replace(watched)
    cells = [_plain(plan), watched, delayed]

    def sample(prepared: Prepared, segments: Segments, show: Progress) -> Sample:
        used = _Delayed(segments, prepared) if prepared is delayed else segments
        return take_sample(prepared, used, show, hang_seconds=HANG_SECONDS)

    with Prober() as prober:
        return take_rounds(cells, PAIRS, rounds, prober, show, sample=sample)


def _plain(plan: Plan) -> Prepared:
    """Return the mix without oracles and assertions, in a segment as large as with them."""
    config = {**plan.config, "CONFIG_DEBUG_VM": 0}
    program = build.compose(STRESS, plan.protocol, config=config, oracles=[yielding])
    return Prepared(plan, program, build.make_engine(plan.engine, program), 0.0)


def rate(sample: Sample) -> float:
    """Accesses and calls of workers and writers per second: what hunts call operations."""
    return (sample.operations + sample.writer_operations) / sample.seconds


def table(found: Rounds) -> list[str]:
    """Say how fast each was, and the ratios with their intervals."""
    lines = []
    for name, taken in zip(CELLS, found.taken, strict=True):
        e = statistics.estimate([rate(s) for s in taken if s is not None])
        lines.append(f"  {name:<36}{e.median:>12,.0f} operations/s [{e.low:,.0f}, {e.high:,.0f}]")
    for pair in PAIRS:
        name = f"{CELLS[pair.numerator]} / {CELLS[pair.denominator]}"
        used, doubt = found.usable(pair), ""
        if len(used) < USABLE_SHARE * len(found.taken[0]):
            doubt = f", inconclusive: {found.why_unusable(pair)}"
            both = zip(found.taken[pair.numerator], found.taken[pair.denominator], strict=True)
            used = [(n, d) for n, d in both if n is not None and d is not None]
        e = statistics.ratio([rate(n) for n, _ in used], [rate(d) for _, d in used])
        lines.append(f"  {name:<36}{e.median:>12.3f}x [{e.low:.3f}, {e.high:.3f}]{doubt}")
    return lines


def violations(found: Rounds) -> list[str]:
    """Return what the checks at rest have found."""
    return [v for taken in found.taken for s in taken if s is not None for v in s.violations]


@click.command()
@click.option("--protocols", default=PROTOCOLS, show_default=True, metavar="NAME,...")
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS, show_default=True)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Length of a sample.")
def main(protocols: str, rounds: int, seconds: float) -> None:
    """Measure the mix of spfemu stress without and with oracles and delays, in turns."""
    try:
        sys.exit(_main(protocols.split(","), rounds, seconds))
    except SpfemuError as error:
        click.echo(f"stress-cost: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)


def _main(protocols: Sequence[str], rounds: int, seconds: float) -> ExitCode:
    status = ExitCode.OK
    for protocol in protocols:
        plan = HuntPlan(protocol)
        with progress(quiet=False) as show:
            found = measure(replace(plan.plan(plan.seed), seconds=seconds), rounds, show)
        click.echo(f"{protocol}, {plan.workers} workers, {plan.writers} writers:")
        for line in [*table(found), *(f"violation: {v}" for v in violations(found))]:
            click.echo(line)
        if found.partial is not None:
            click.echo(f"partial: {found.partial.reason}")
            return ExitCode(found.partial.status)
        if violations(found):
            status = ExitCode.VIOLATION
    return status


if __name__ == "__main__":
    main()
