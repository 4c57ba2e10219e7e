# SPDX-License-Identifier: MIT
"""Compare protocols, numbers of workers and the host: everything in turns, ratios round by round.

A round takes one sample of every cell, so what is slow for a while is slow for all.  A ratio is
made of the rounds in which the probes around both its samples agree; rounds are repeated if too
many are lost, and a ratio that still has too few is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from spfemu import results
from spfemu.errors import InconclusiveError
from spfemu.measure import build, environment, statistics, topology
from spfemu.measure.plan import Plan, Progress, quiet
from spfemu.measure.probe import PROBE_FACTOR, Probe, Prober, moved
from spfemu.measure.run import (
    EXTRA_SHARE,
    Prepared,
    Sample,
    Segments,
    Series,
    for_workers,
    keep_finished,
    make_result,
    part_of,
    prepare,
    run_series,
    take_sample,
)

SCALE_SECONDS = 0.3
SCALE_WARMUP = 0.1
SCALE_ROUNDS = 9
"""With these, two protocols and the host on two cores take about forty seconds."""
USABLE_SHARE = 0.5
"""A ratio needs this share of the rounds, and at least MIN_PAIRS if so many were asked for."""
MIN_PAIRS = statistics.MIN_SAMPLES
CALIBRATION_REPEATS = 3
WAITED_PERCENT = 5.0
"""Share of a sample that a worker may wait for its CPU before it is mentioned."""
WAITED_LIMIT_PERCENT = 25.0
"""Share of a sample from which on the sample is not compared: it shows the scheduler at work."""
WIDE = 0.2
"""Width of an interval, as a share of its median, that is mentioned."""

SampleTaker = Callable[[Prepared, Segments, Progress], Sample]


@dataclass(frozen=True)
class Pair:
    """Two cells whose ratio is wanted, by their place in the list of cells."""

    numerator: int
    denominator: int


@dataclass
class Rounds:
    """All samples: one list per cell, in step; None for a cell that a round did not take."""

    cells: list[Prepared]
    factor: float = PROBE_FACTOR
    taken: list[list[Sample | None]] = field(default_factory=list)
    partial: results.Partial | None = None

    def __post_init__(self) -> None:
        self.taken = [[] for _ in self.cells]

    def usable(self, pair: Pair) -> list[tuple[Sample, Sample]]:
        """Return the rounds in which the machine did not change between the two samples."""
        found = []
        both = zip(self.taken[pair.numerator], self.taken[pair.denominator], strict=True)
        for numerator, denominator in both:
            if numerator is not None and denominator is not None:
                moves = moved([*_probes(numerator), *_probes(denominator)], self.factor)
                disturbed = self._either_starved(pair, numerator, denominator)
                if not moves and not disturbed and not (numerator.stopped or denominator.stopped):
                    found.append((numerator, denominator))
        return found

    def why_unusable(self, pair: Pair) -> str:
        """Say what was wrong with the rounds that cannot be used."""
        both = [
            (n, d)
            for n, d in zip(self.taken[pair.numerator], self.taken[pair.denominator], strict=True)
            if n is not None and d is not None
        ]
        moves = sum(moved([*_probes(n), *_probes(d)], self.factor) for n, d in both)
        waits = sum(self._either_starved(pair, n, d) for n, d in both)
        causes = []
        if moves:
            causes.append(f"in {moves} the probe moved by more than {self.factor:g} times")
        if waits:
            causes.append(
                f"in {waits} a worker waited for its CPU for more than "
                f"{WAITED_LIMIT_PERCENT:.0f} % of the time"
            )
        if stops := sum(n.stopped or d.stopped for n, d in both):
            causes.append(f"in {stops} a signal stopped a worker")
        usable = len(self.usable(pair))
        return f"only {usable} of {len(both)} rounds can be used: {' and '.join(causes)}"

    def _either_starved(self, pair: Pair, numerator: Sample, denominator: Sample) -> bool:
        return self.starved(pair.numerator, numerator) or self.starved(
            pair.denominator, denominator
        )

    def starved(self, cell: int, sample: Sample) -> bool:
        """Tell whether a worker that should have had its CPU to itself waited too long for it."""
        plan = self.cells[cell].plan
        alone = len(set(plan.placement())) == plan.nr_tasks
        return alone and (sample.waited_percent or 0.0) > WAITED_LIMIT_PERCENT

    def series(self, cell: int) -> Series:
        """Return the samples of one cell; those that were repeated are counted, not kept."""
        kept: list[Sample] = []
        repeated = 0
        for sample in self.taken[cell]:
            if sample is None:
                continue
            moves = moved(_probes(sample), self.factor)
            if moves or sample.stopped or self.starved(cell, sample):
                repeated += 1
                continue
            kept.append(replace(sample, repeated=repeated))
            repeated = 0
        if not kept:  # better a doubtful figure, marked inconclusive, than none
            kept = [s for s in self.taken[cell] if s is not None]
        return Series(self.cells[cell], kept, self.partial)


def _probes(sample: Sample) -> tuple[Probe, ...]:
    return sample.probes or ()


def take_rounds(
    cells: list[Prepared],
    pairs: Sequence[Pair],
    rounds: int,
    prober: Prober,
    progress: Progress = quiet,
    *,
    factor: float = PROBE_FACTOR,
    sample: SampleTaker = take_sample,
) -> Rounds:
    """Sample all cells in turns, `rounds` times, and again where the machine changed meanwhile.

    Ctrl-C or an error of `sample` keeps the rounds that are finished, and is raised if there is
    none.
    """
    found = Rounds(cells, factor)
    segments = Segments()
    finished: list[int] = []
    limit = rounds + math.ceil(EXTRA_SHARE * rounds)
    with keep_finished(finished) as ended:
        before = prober.probe()
        while len(finished) < limit:
            wanted = _wanted(found, pairs, rounds, len(finished))
            if not wanted:
                break
            row: list[Sample | None] = [None] * len(cells)
            # every other round backwards, so that what follows what is not always the same
            for cell in sorted(wanted, reverse=len(finished) % 2 == 1):
                label = f"{cells[cell].plan.label()}, round {len(finished) + 1}"
                done = min(1.0, len(finished) / rounds)
                progress(label, done)
                measured = sample(cells[cell], segments, part_of(progress, label, done))
                after = prober.probe()
                row[cell] = replace(measured, probes=(before, after))
                before = after
            for column, entry in zip(found.taken, row, strict=True):
                column.append(entry)
            finished.append(len(finished))
    segments.close()
    found.partial = ended()
    return found


def _wanted(found: Rounds, pairs: Sequence[Pair], rounds: int, finished: int) -> set[int]:
    """Return the cells that the next round has to take."""
    if finished < rounds:
        return set(range(len(found.cells)))
    short = [p for p in pairs if len(found.usable(p)) < rounds]
    return {cell for p in short for cell in (p.numerator, p.denominator)}


def make_ratio(
    found: Rounds, pair: Pair, rounds: int, quantity: str = "faults_per_second"
) -> results.Ratio:
    """Divide round by round; says why if the ratio must not be used."""
    usable = found.usable(pair)
    reason = None
    needed = max(min(MIN_PAIRS, rounds), math.ceil(USABLE_SHARE * rounds))
    if len(usable) < needed:
        reason = found.why_unusable(pair)
        finished = len(found.taken[pair.numerator])
        if found.partial and finished < needed:
            reason = f"ended after {finished} round{'' if finished == 1 else 's'}"
        usable = [
            (n, d)
            for n, d in zip(found.taken[pair.numerator], found.taken[pair.denominator], strict=True)
            if n is not None and d is not None
        ]
    rates = [(_rate(n, quantity), _rate(d, quantity)) for n, d in usable]
    taken = len(rates)
    rates = [(n, d) for n, d in rates if d > 0]
    if len(rates) < taken and reason is None:
        label = found.cells[pair.denominator].plan.label()
        reason = f"{label} did no operation in {taken - len(rates)} of {taken} samples"
    if not rates:
        raise InconclusiveError(
            f"nothing to compare: {found.cells[pair.denominator].plan.label()} did no operation "
            "in any sample; use longer samples (--seconds)"
        )
    estimate = statistics.ratio([n for n, _ in rates], [d for _, d in rates])
    return results.Ratio(
        quantity="faults_per_second"
        if quantity == "faults_per_second"
        else "operations_per_second",
        numerator=_operand(found, pair.numerator),
        denominator=_operand(found, pair.denominator),
        median=estimate.median,
        low=estimate.low,
        high=estimate.high,
        samples=list(estimate.samples),
        inconclusive=reason,
    )


def _rate(sample: Sample, quantity: str) -> float:
    count = sample.faults if quantity == "faults_per_second" else sample.operations
    return count / sample.seconds


def _operand(found: Rounds, cell: int) -> results.Operand:
    plan = found.cells[cell].plan
    return results.Operand(
        result=cell,
        workload=plan.workload,
        target="host" if plan.target == "host" else "emulator",
        protocol=None if plan.target == "host" else plan.protocol,
        workers=plan.workers,
    )


def default_workers() -> list[int]:
    """1 to the number of cores; powers of two and the number itself when there are many."""
    cores = len({(c.package, c.core) for c in topology.cores()})
    if cores <= 4:
        return list(range(1, cores + 1))
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i < cores]
    return [*powers, cores]


def scale(
    plan: Plan,
    command: Sequence[str],
    *,
    protocols: Sequence[str] = ("classic", "spf"),
    base: str | None = None,
    workers: Sequence[int] | None = None,
    with_host: bool = True,
    overhead_from_host: bool = False,
    factor: float = PROBE_FACTOR,
    progress: Progress = quiet,
) -> results.Report:
    """Measure how protocols scale beside each other and the host, and say what was found.

    `plan` gives everything but protocol, target and workers; its `repeats` are the rounds.  Ratios
    to `base`, else to the first protocol, decide what was found and which rounds are repeated.
    Overrides are the emulated kernel's alone: the host runs the workload as it stands.  With
    `overhead_from_host` the fault overhead is calibrated first.  Raises what `take_sample` and
    `prepare` raise, InconclusiveError if nothing was measured.
    """
    counts = sorted(set(workers)) if workers else default_workers()
    warnings = []
    if with_host and plan.overlap and not build.workload(plan.workload).overlap_on_host:
        with_host = False
        warnings.append(f"the host cannot run {plan.workload} with overlap: it is left out")
    where = environment.record()
    base = base or protocols[0]
    protocols = list(dict.fromkeys((base, *protocols)))
    if overhead_from_host:
        plan = replace(plan, protocol=protocols[0])
        plan = replace(plan, fault_overhead_ns=calibrate_overhead(plan, progress))
    kinds = [prepare(replace(plan, protocol=p, target="emulator"), progress) for p in protocols]
    if with_host:
        kinds.append(prepare(_host_plan(plan), progress))
    cells = [for_workers(kind, count) for kind in kinds for count in counts]
    pairs, others = _scale_pairs(len(kinds), len(counts), with_host=with_host)
    # a recording takes as many faults whoever handles them; what differs is how fast it goes
    faults = plan.trace is None and build.workload(plan.workload).faults
    quantity = "faults_per_second" if faults else "operations_per_second"
    with Prober() as prober:
        found = take_rounds(cells, pairs, plan.repeats, prober, progress, factor=factor)
    measured = [
        make_result(found.series(i), overhead_from_host=overhead_from_host)
        for i in range(len(cells))
    ]
    ratios = [make_ratio(found, pair, plan.repeats, quantity) for pair in [*pairs, *others]]
    to_base = ratios[: len(pairs)]
    warnings += [*warnings_of(cells, measured), *_probe_warnings(found)]
    return results.Report(
        command=list(command),
        seed=plan.seed,
        environment=where,
        results=measured,
        ratios=ratios,
        base=base,
        finding=finding(to_base),
        partial=found.partial,
        inconclusive=inconclusive(to_base),
        warnings=list(dict.fromkeys(warnings)),
    )


def _scale_pairs(kinds: int, counts: int, *, with_host: bool) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs that tables show, and those that are kept beside them.

    Shown are the scaling of each kind from the least number of workers, then each kind beside the
    first at each number.  The later protocol is divided by the earlier, all are divided by the
    host, which comes last.
    """
    shown = [
        Pair(kind * counts + count, kind * counts)
        for kind in range(kinds)
        for count in range(1, counts)
    ]
    others: list[Pair] = []
    for count in range(counts):
        for kind in range(1, kinds):
            for other in range(kind):
                later, earlier = kind * counts + count, other * counts + count
                beside_host = with_host and kind == kinds - 1
                pair = Pair(earlier, later) if beside_host else Pair(later, earlier)
                (others if other else shown).append(pair)
    return shown, others


def _host_plan(plan: Plan) -> Plan:
    return replace(plan, target="host", engine="native", fault_overhead_ns=0.0, overrides=())


def calibrate_overhead(plan: Plan, progress: Progress = quiet) -> float:
    """Time that a fault takes longer on the host than here, with one worker [ns]; not below 0.

    It stands for the exception entry and the rest of the kernel that the emulator leaves out.
    """
    alone = replace(
        plan,
        workers=1,
        writers=0,
        overlap=False,
        repeats=CALIBRATION_REPEATS,
        fault_overhead_ns=0.0,
        latency=False,
    )
    progress("calibrating the fault overhead", None)
    costs = []
    for one in (_host_plan(alone), replace(alone, target="emulator")):
        rates = run_series(one, progress).faults_per_second()
        rate = statistics.estimate(rates).median
        if rate <= 0:
            raise InconclusiveError(
                f"cannot calibrate the fault overhead: {plan.workload} takes no faults"
            )
        costs.append(1e9 / rate)
    return max(0.0, costs[0] - costs[1])


def inconclusive(ratios: Iterable[results.Ratio]) -> list[str]:
    """Name the ratios that must not be used, by the reason why."""
    by_reason: dict[str, list[str]] = {}
    for ratio in ratios:
        if ratio.inconclusive is not None:
            names = by_reason.setdefault(ratio.inconclusive, [])
            names.append(f"{_side(ratio.numerator)} to {_side(ratio.denominator)}")
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def warnings_of(cells: Sequence[Prepared], measured: Sequence[results.Result]) -> list[str]:
    """Return what a reader has to know before believing the figures."""
    found = [note for cell in cells for note in cell.plan.notes()]
    waited = max(
        (p.waited_percent or 0.0 for r in measured if not r.oversubscribed for p in r.probes),
        default=0.0,
    )
    if waited > WAITED_PERCENT:
        found.append(
            "something else ran on the workers' CPUs: a worker waited for up to "
            f"{waited:.0f} % of a sample"
        )
    few: list[int] = []
    for result in measured:
        events = result.events
        faults, attempts = events.get("PGFAULT", 0), events.get("SPF_ATTEMPT", 0)
        if (result.protocol or "").startswith("spf") and faults and not attempts:
            plural = "" if result.workers == 1 else "s"
            found.append(
                f"{result.protocol} with {result.workers} worker{plural} did not speculate: "
                "a process with a single thread takes its faults as classic does"
            )
        rates = result.faults_per_second
        if 1 < len(rates.samples) < statistics.MIN_SAMPLES:
            few.append(len(rates.samples))
        spread = (rates.high - rates.low) / rates.median if rates.median else 0.0
        if spread > WIDE:
            name = "host" if result.target == "host" else result.protocol
            plural = "" if result.workers == 1 else "s"
            found.append(
                f"{name} with {result.workers} worker{plural}: the interval is {spread:.0%} of "
                "the median wide; use more --repeats or a quieter machine"
            )
    if few:
        found.append(
            f"{min(few)} samples give a range, not a 95 % interval; that takes "
            f"{statistics.MIN_SAMPLES} or more --repeats"
        )
    return found


def _probe_warnings(found: Rounds) -> list[str]:
    probes = [p for column in found.taken for s in column if s is not None for p in _probes(s)]
    if probes and probes[0].line_ns is None:
        return ["one CPU only: the cost of moving a cache line cannot be probed"]
    if moved(probes, found.factor):
        lines = [p.line_ns for p in probes if p.line_ns is not None and math.isfinite(p.line_ns)]
        if not lines:
            return ["the cores that were probed were taken away during every probe"]
        clocks = [p.clock_ghz for p in probes]
        text = (
            f"during the run, moving a cache line cost from {min(lines):.0f} to "
            f"{max(lines):.0f} ns and the clock ran at {min(clocks):.2f} to {max(clocks):.2f} "
            "GHz: only samples that agree were compared"
        )
        return [text]
    return []


def _side(operand: results.Operand) -> str:
    name = "the host" if operand.target == "host" else str(operand.protocol)
    return f"{name} with {operand.workers} worker{'' if operand.workers == 1 else 's'}"


def finding(ratios: Sequence[results.Ratio]) -> str:
    """Say in one sentence what the ratios show.

    First how each kind scales to the most workers, then which protocol is ahead there.  An
    interval that contains 1 shows no difference, and what is inconclusive is called so; the
    reasons stand beside the ratios.
    """
    if not ratios:
        return "Nothing was compared."
    most = max(r.numerator.workers for r in ratios)
    least = min(r.denominator.workers for r in ratios)
    what = "faults" if ratios[0].quantity == "faults_per_second" else "operations"
    scaling = [r for r in ratios if r.numerator.workers == most != r.denominator.workers]
    beside = [r for r in ratios if r.numerator.workers == r.denominator.workers == most]
    protocols = [r for r in beside if "host" not in (r.numerator.target, r.denominator.target)]
    beside = protocols or beside
    parts = []
    if scaling:
        each = ", ".join(f"{_figure(r)} {_where(r.numerator)}" for r in scaling)
        parts.append(f"from {least} to {most} workers on this machine, {what} scale {each}")
    if beside:
        each = ", ".join(
            f"{_name(r.numerator)} does {_figure(r)} the {what} of {_name(r.denominator)}"
            for r in beside
        )
        parts.append(f"with {most} worker{'' if most == 1 else 's'}, {each}")
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _name(operand: results.Operand) -> str:
    return "the host" if operand.target == "host" else str(operand.protocol)


def _where(operand: results.Operand) -> str:
    return "on the host" if operand.target == "host" else f"with {operand.protocol}"


def _figure(ratio: results.Ratio) -> str:
    figure = f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.inconclusive is not None:
        return f"an inconclusive {figure}"
    if ratio.low <= 1 <= ratio.high:
        return f"{figure} (no difference shown)"
    return figure
