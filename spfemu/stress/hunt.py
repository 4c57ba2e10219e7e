# SPDX-License-Identifier: MIT
"""Hunt for broken promises: rounds of the stress mix in real processes, judged while they run.

A round is a segment in its initial state, a seed, fresh worker processes, and the checks at rest.
The same round, by its seed, does the same operations again; what differs is how they interleave.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from spfemu import results
from spfemu.checks import check_segment
from spfemu.errors import UsageError, WorkerDiedError, WorkerKilledError
from spfemu.events import ABORT_REASONS, VMA_LOCK_ABORT_REASONS, Event
from spfemu.measure.plan import Plan, Progress, in_range, quiet
from spfemu.measure.probe import cycles_per_second
from spfemu.measure.run import Prepared, Segments, keep_finished, overrides_of, part_of, prepare
from spfemu.measure.workers import WATCH_PERIOD, Workers
from spfemu.segment import Segment
from spfemu.stress.delays import focus_sites, set_delays
from spfemu.stress.promises import Promise
from spfemu.stress.quarantine import set_quarantine
from spfemu.stress.verdict import Violation, of_checks, of_death
from spfemu.stress.watchdog import Watchdog
from spfemu.workloads.parameters import STRESS

ROUND_SECONDS = 1.0
"""Long enough for thousands of operations beside each other, short enough to check often."""
HANG_SECONDS = 20.0
SWAP = 16 << 20
NODES = 2
SEED_BITS = 48
SEED_MAX = (1 << 63) - 1

_LOST = frozenset({
    *("ODD", "VMA_COPY", "PTE_MAP_LOCK_SEQ1", "PTE_MAP_LOCK_PMD", "PTE_MAP_LOCK_PTL"),
    *("PTE_MAP_LOCK_SEQ2", "SEQ", "BUSY", "SEQ_RECHECK", "RANGE", "MM"),
})  # fmt: skip
RACES = tuple(
    reason
    for reason in (*ABORT_REASONS, *VMA_LOCK_ABORT_REASONS)
    if reason.name.rpartition("ABORT_")[2] in _LOST
)
"""Reasons for which faults give up that only others can bring about."""


@dataclass(frozen=True)
class HuntPlan:
    """What is hunted in, and for how long."""

    protocol: str = "spf"
    workers: int = 2
    writers: int = 2
    seconds: float = 10.0
    seed: int = field(default_factory=lambda: secrets.randbits(SEED_BITS))
    overrides: tuple[str, ...] = ()
    delays: bool = True
    hang_seconds: float = HANG_SECONDS
    table_free: str = "rcu"
    repeat: bool = False
    """All rounds have the same seed, so do the same operations."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise UsageError(f"seconds must be more than 0, not {self.seconds:g}")
        in_range("seed", self.seed, 0, SEED_MAX)
        if self.protocol == "bare":
            raise UsageError(
                "protocol bare takes no lock and keeps no promise: there is nothing to hunt for"
            )
        self.plan(self.seed)  # refuses what it cannot run

    def plan(self, seed: int) -> Plan:
        """Return the plan of the round with this seed."""
        return Plan(
            STRESS,
            self.protocol,
            workers=self.workers,
            writers=self.writers,
            seconds=ROUND_SECONDS,
            swap=SWAP,
            khugepaged=True,
            nodes=NODES,
            table_free=self.table_free,
            seed=seed,
            overrides=self.overrides,
            oracles=True,
        )


@dataclass
class HuntResult:
    """What a hunt came to.

    `operations` are accesses and calls of all CPUs; `copies` those of VMAs that speculative faults
    made, `torn` how many of them were a mixture of states, `escaped` how many of these a fault went
    on with.  `round_seed` is that of the round that broke a promise.  `partial` says
    what ended it early: only finished rounds count.
    """

    protocol: str
    seed: int
    rounds: int = 0
    operations: int = 0
    seconds: float = 0.0
    copies: int = 0
    torn: int = 0
    escaped: int = 0
    events: Counter[str] = field(default_factory=Counter)
    violation: Violation | None = None
    round_seed: int | None = None
    overrides: list[results.Override] = field(default_factory=list)
    partial: results.Partial | None = None

    def races(self) -> Counter[str]:
        """Faults that gave up because of others, by the kind of race that they lost."""
        counts = {_race(reason): self.events[reason.name] for reason in RACES}
        return Counter({name: count for name, count in counts.items() if count})

    @property
    def too_weak(self) -> str | None:
        """Why a hunt that found nothing proves nothing, or None."""
        if self.violation is not None:
            return None
        if self.copies and not self.torn:
            return f"no copy of {self.copies:,} was torn: the races that count did not happen"
        if not self.operations:
            return "nothing was done"
        return None


def hunt(plan: HuntPlan, progress: Progress = quiet) -> HuntResult:
    """Hunt until the time is over or a promise is broken.

    Ctrl-C or an error, such as a worker that a signal from elsewhere ends, keeps the rounds that
    are finished and sets `partial`; it is raised if there is none.  Raises UsageError and
    KernelSourceError for an override that cannot be used.
    """
    result = HuntResult(plan.protocol, plan.seed)
    prepared = prepare(plan.plan(plan.seed), progress)
    result.overrides = overrides_of(prepared.program)
    segments = Segments()
    started = time.monotonic()
    finished: list[int] = []
    with keep_finished(finished) as ended, contextlib.closing(segments):
        while result.violation is None and time.monotonic() - started < plan.seconds:
            seed = plan.seed + (0 if plan.repeat else result.rounds)
            left = plan.seconds - (time.monotonic() - started)
            label, done = _progress(result, left), 1 - left / plan.seconds
            progress(label, done)
            starting = part_of(progress, label, done)
            result.violation = run_round(plan, prepared, segments, seed, result, left, starting)
            result.round_seed = seed if result.violation else None
            result.rounds += 1
            finished.append(seed)
    result.partial = ended()
    result.seconds = time.monotonic() - started
    return result


def run_round(
    plan: HuntPlan,
    prepared: Prepared,
    segments: Segments,
    seed: int,
    result: HuntResult,
    left: float = ROUND_SECONDS,
    progress: Progress = quiet,
) -> Violation | None:
    """Run one round, add what it did to `result`; returns the first promise that it broke.

    `progress` is told of a start of many workers.
    """
    prepared = replace(prepared, plan=plan.plan(seed))
    segment = segments.get(prepared.plan)
    violation = None
    cycles = cycles_per_second()
    if plan.delays:
        focus = focus_sites(prepared.program, prepared.engine.sites)
        set_delays(segment, seed, cycles, focus=focus)
    set_quarantine(segment, seed)
    watchdog = Watchdog(segment, prepared.plan, plan.hang_seconds)
    try:
        with Workers(
            prepared.plan, prepared.engine, segment, cycles, plan.hang_seconds, progress
        ) as workers:
            workers.watchdog = watchdog
            workers.open_gate()
            workers.watch(min(left, ROUND_SECONDS))
            while watchdog.overdue():
                workers.watch(WATCH_PERIOD)
            workers.stop()
    except WorkerKilledError:  # it broke no promise
        raise
    except WorkerDiedError as error:
        violation = of_death(segment, prepared, error)
    else:
        found = check_segment(segment)
        if found:
            violation = of_checks(found)
    _add(result, segment, violation)
    return violation


def _race(reason: Event) -> str:
    return reason.name.rpartition("ABORT_")[2].removeprefix("PTE_MAP_LOCK_")


def _add(result: HuntResult, segment: Segment, violation: Violation | None) -> None:
    result.operations += int(segment.cpus["operations"].sum())
    totals = segment.cpus["event"].sum(axis=0)
    result.events.update({e.name: int(totals[e]) for e in Event if totals[e]})
    result.copies += int(segment.stress_cpus["copies"].sum())
    result.torn += int(segment.stress_cpus["torn"].sum())
    if violation is not None and violation.promise is Promise.TORN_READ:
        # not of a fault that had locked its VMA, which makes no copy
        torn = segment.stress_cpus["torn_vma"] == segment.stress["a"]
        result.escaped += int(torn.any())


def _progress(result: HuntResult, left: float) -> str:
    torn = f", {result.torn:,} torn copies rejected" if result.copies else ""
    races = "".join(f", {count:,} {name}" for name, count in result.races().most_common(3))
    return f"{result.protocol}: {result.operations:,} operations{torn}{races}, {left:.0f} s left"
