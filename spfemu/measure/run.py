# SPDX-License-Identifier: MIT
"""Take samples of one configuration and make its result.

A sample is a run of its own: fresh processes on a segment in its initial state, a warm-up that is
dropped, then a window at whose ends the parent reads the counters, then the checks.  Rates come
from the window.  `events` are counted from the set-up to the end, warm-up included, because only
at rest do counters that add up add up.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from spfemu import results
from spfemu.engines.source import Program
from spfemu.errors import ExitCode, SpfemuError, UsageError, WorkerDiedError
from spfemu.events import Event
from spfemu.layout import HIST_BUCKETS, PAGE_SIZE
from spfemu.measure import build, latency, statistics, topology
from spfemu.measure.hardware import HardwareCounters
from spfemu.measure.plan import Plan, Progress, quiet
from spfemu.measure.probe import Probe, Prober, cycles_per_second, moved
from spfemu.measure.workers import HANG_SECONDS, Workers
from spfemu.mm.latency import FAULT_LATENCY, WRITER_LATENCY
from spfemu.segment import Geometry, Segment
from spfemu.workloads.parameters import Param

NUMA_SCAN_SECONDS = 0.02
"""Time between two scans of an mm: short, as samples are (Linux: 1 s to 60 s)."""
TICK_SECONDS = 0.004
"""A scheduler tick at HZ=250: what the rwsem measures its patience with."""
EXTRA_SHARE = 0.5
"""Samples that may be added for those lost to a changing machine, as a share of the repeats."""
READ_SHARE = 0.01
"""Reading the counters may take this share of a sample: so far off its rates may be."""
READ_TRIES = 5
KEEP_SHARE = 0.25
"""Segments are kept for later samples while they take less than this share of the memory."""


@dataclass(frozen=True)
class Prepared:
    """A plan with its program, compiled or bound."""

    plan: Plan
    program: Program
    engine: build.Engine
    seconds: float
    """How long that took."""


@dataclass(frozen=True)
class Histogram:
    """Latencies seen in one sample."""

    buckets: NDArray[np.int64]
    largest: int


@dataclass(frozen=True)
class Sample:
    """One measured window, and what the run around it counted."""

    seconds: float
    faults: int
    operations: int
    writer_operations: int
    events: dict[str, int]
    fault_latency: Histogram
    writer_latency: Histogram
    hardware: list[dict[str, int]] | None
    idle_percent: float | None
    waited_percent: float | None
    violations: list[str]
    stopped: bool = False
    """Whether a signal stopped a worker in it."""
    probes: tuple[Probe, Probe] | None = None
    repeated: int = 0


@dataclass
class Series:
    """The samples of one plan."""

    prepared: Prepared
    samples: list[Sample] = field(default_factory=list)
    partial: results.Partial | None = None

    def faults_per_second(self) -> list[float]:
        """One rate per sample."""
        return [s.faults / s.seconds for s in self.samples]

    def operations_per_second(self) -> list[float]:
        """One rate per sample, in what will-it-scale counts as iterations."""
        plan = self.prepared.plan
        factor = build.workload(plan.workload).iterations(plan.parameters)
        return [factor * s.operations / s.seconds for s in self.samples]

    def writer_operations_per_second(self) -> list[float]:
        """One rate per sample, of all writers together."""
        return [s.writer_operations / s.seconds for s in self.samples]


def prepare(plan: Plan, progress: Progress = quiet) -> Prepared:
    """Put the plan's program together and compile it.

    Raises UsageError, KernelSourceError for an override that cannot be used.
    """
    started = time.perf_counter()
    what = "host" if plan.target == "host" else plan.protocol
    progress(f"compiling {plan.workload} for {what}", None)
    oracles = build.oracles() if plan.oracles else ()
    program = build.compose(
        plan.workload, plan.protocol, plan.target, plan.config, plan.overrides, oracles
    )
    _refuse_ignored(plan, program)
    engine = build.make_engine(plan.engine, program)
    return Prepared(plan, program, engine, time.perf_counter() - started)


def _refuse_ignored(plan: Plan, program: Program) -> None:
    """Raise UsageError for a parameter that was given and that the program never looks at.

    An override may have replaced what does.
    """
    if plan.overrides:
        return
    given = {Param.SIZE: plan.size, Param.AREAS: plan.areas, Param.PAGES: plan.pages}
    for param, value in given.items():
        if value is not None and not build.reads(program, param):
            raise UsageError(
                f"--{param.name.lower()} means nothing to {plan.workload}: leave it out"
            )


def for_workers(prepared: Prepared, workers: int) -> Prepared:
    """Return the same program for another number of workers: nothing is compiled again."""
    return replace(prepared, plan=prepared.plan.with_workers(workers))


class Segments:
    """Segments to run in, by size; they are used again while memory allows."""

    def __init__(self) -> None:
        self._kept: dict[Geometry, Segment] = {}

    def get(self, plan: Plan) -> Segment:
        """Return a segment in its initial state; raises ResourceError if memory is short."""
        geometry = plan.geometry
        segment = self._kept.get(geometry)
        if segment is None:
            limit = KEEP_SHARE * psutil.virtual_memory().total
            if sum(g.size for g in self._kept) + geometry.size > limit:
                self.close()
            segment = Segment.create(geometry, advice=plan.use_less)
            self._kept[geometry] = segment
        segment.reset(plan.seed)
        segment.system["cycles_per_tick"] = round(TICK_SECONDS * cycles_per_second())
        scan_period = round(NUMA_SCAN_SECONDS * cycles_per_second())
        segment.system["numa_scan_period"] = scan_period
        return segment

    def close(self) -> None:
        """Give all segments back."""
        for segment in self._kept.values():
            segment.close()
        self._kept = {}


@dataclass(frozen=True)
class _Counts:
    """What the parent reads at an end of the window."""

    at: float
    faults: int
    operations: int
    writer_operations: int
    histograms: NDArray[np.int64]
    idle: float
    total: float
    waited: list[int] | None


def take_sample(
    prepared: Prepared,
    segments: Segments,
    progress: Progress = quiet,
    *,
    hang_seconds: float = HANG_SECONDS,
) -> Sample:
    """Run the plan once and measure its window.

    `progress` is told of a start of many workers.  Raises WorkerDiedError if a worker dies, hangs
    or gives up; ResourceError if memory is short.
    """
    plan = prepared.plan
    segment = segments.get(plan)
    with Workers(
        plan, prepared.engine, segment, cycles_per_second(), hang_seconds, progress
    ) as workers:
        threads = [workers.threads[i][1] for i in range(plan.nr_tasks)]
        with HardwareCounters(threads) as hardware:
            workers.open_gate()
            workers.watch(plan.warmup)
            hardware.start()
            before = _read(plan, segment, workers)
            workers.watch(plan.seconds)
            after = _read(plan, segment, workers)
            counted = hardware.stop()
        workers.stop()
    return replace(_sample(plan, segment, before, after, counted), stopped=workers.stops > 0)


def _read(plan: Plan, segment: Segment, workers: Workers) -> _Counts:
    """Read the counters; again if this process was held up between them and the clock."""
    cpus = segment.cpus[: plan.nr_cpus]
    for _ in range(READ_TRIES):
        begun = time.monotonic()
        operations = cpus["operations"].copy()
        faults = int(cpus["event"][:, Event.PGFAULT].sum())
        if plan.target == "host":  # those counted so far are of children
            faults += sum(_minor_faults(*workers.threads[i]) for i in range(plan.nr_cpus))
        at = time.monotonic()
        if at - begun <= READ_SHARE * plan.seconds:
            break
    histograms = np.zeros((2, HIST_BUCKETS), np.int64)
    if plan.latency:
        per_cpu = segment.histograms["bucket"]
        for kind in (FAULT_LATENCY, WRITER_LATENCY):
            histograms[kind] = per_cpu[kind::2].sum(axis=0)
    idle, total = _cpu_times()
    return _Counts(
        at,
        faults,
        int(operations[: plan.workers].sum()),
        int(operations[plan.workers : plan.nr_tasks].sum()),
        histograms,
        idle,
        total,
        workers.waited(),
    )


def _minor_faults(process: int, thread: int) -> int:
    """Minor faults that the real kernel has counted for a thread.

    Raises WorkerDiedError if it is gone.
    """
    try:
        stat = Path(f"/proc/{process}/task/{thread}/stat").read_text()
    except OSError as error:
        raise WorkerDiedError(f"worker thread {thread} of process {process} is gone") from error
    # the name in parentheses may hold anything; minflt is the eighth field behind it
    return int(stat.rpartition(")")[2].split()[7])


def _cpu_times() -> tuple[float, float]:
    """Idle and whole time of all usable CPUs [s]."""
    times = psutil.cpu_times(percpu=True)
    usable = [c.cpu for c in topology.cores() if c.cpu < len(times)]
    idle = sum(times[c].idle + times[c].iowait for c in usable)
    return idle, sum(sum(times[c][:8]) for c in usable)


def _sample(
    plan: Plan,
    segment: Segment,
    before: _Counts,
    after: _Counts,
    counted: list[dict[str, int]] | None,
) -> Sample:
    cpus = segment.cpus[: plan.nr_cpus]
    totals = cpus["event"].sum(axis=0)
    window = after.histograms - before.histograms
    largest = segment.histograms["max"]
    elapsed = after.total - before.total
    return Sample(
        seconds=after.at - before.at,
        faults=after.faults - before.faults,
        operations=after.operations - before.operations,
        writer_operations=after.writer_operations - before.writer_operations,
        events={e.name: int(totals[e]) for e in Event},
        fault_latency=Histogram(window[FAULT_LATENCY], int(largest[FAULT_LATENCY::2].max())),
        writer_latency=Histogram(window[WRITER_LATENCY], int(largest[WRITER_LATENCY::2].max())),
        hardware=counted,
        idle_percent=100 * (after.idle - before.idle) / elapsed if elapsed > 0 else None,
        waited_percent=_waited_percent(before, after),
        violations=_check(plan, segment),
    )


def _waited_percent(before: _Counts, after: _Counts) -> float | None:
    if before.waited is None or after.waited is None:
        return None
    longest = max(b - a for a, b in zip(before.waited, after.waited, strict=True))
    # Linux adds a wait up when it ends: one that began before the window counts in full
    return min(100.0, longest * 1e-7 / (after.at - before.at))


def _check(plan: Plan, segment: Segment) -> list[str]:
    """Check the segment at rest; there is nothing of the kernel's in a host segment."""
    if plan.target == "host":
        return []
    from spfemu.checks import check_segment

    return check_segment(segment)


def measure(
    plan: Plan, progress: Progress = quiet, *, hang_seconds: float = HANG_SECONDS
) -> results.Result:
    """Measure one plan and return its result; see `run_series` for interruptions and errors."""
    return make_result(run_series(plan, progress, hang_seconds=hang_seconds))


def run_series(
    plan: Plan, progress: Progress = quiet, *, hang_seconds: float = HANG_SECONDS
) -> Series:
    """Take `plan.repeats` samples, each between two probes of the machine.

    A sample whose probes differ by more than PROBE_FACTOR, or in which a worker was stopped, is
    taken again while EXTRA_SHARE lasts.  Ctrl-C or an error of `take_sample` ends the series:
    finished samples are kept and `partial` is set.  If there is none yet it is raised, and so is
    what `prepare` raises.
    """
    series = Series(prepare(plan, progress))
    segments = Segments()
    with keep_finished(series.samples) as ended, Prober() as prober:
        extra = math.ceil(EXTRA_SHARE * plan.repeats)
        repeated = 0
        before = prober.probe()
        while (i := len(series.samples)) < plan.repeats:
            label, done = f"{plan.label()}, repeat {i + 1}", i / plan.repeats
            progress(label, done)
            starting = part_of(progress, label, done)
            sample = take_sample(series.prepared, segments, starting, hang_seconds=hang_seconds)
            probes = before, prober.probe()
            before = probes[1]
            if (moved(probes) or sample.stopped) and extra:
                extra -= 1
                repeated += 1
                continue
            series.samples.append(replace(sample, probes=probes, repeated=repeated))
            repeated = 0
    segments.close()
    series.partial = ended()
    return series


def part_of(progress: Progress, label: str, done: float) -> Progress:
    """Return what tells `progress` of a part of what `label` names."""
    return lambda message, _fraction: progress(f"{label}, {message}", done)


@contextlib.contextmanager
def keep_finished(finished: Sequence[object]) -> Iterator[Callable[[], results.Partial | None]]:
    """Let Ctrl-C or an error end the block without an exception once something is finished.

    The value is a function that tells what ended it, or None.
    """
    ends: list[results.Partial] = []
    try:
        yield lambda: ends[0] if ends else None
    except KeyboardInterrupt:
        if not finished:
            raise
        ends.append(results.Partial(status=ExitCode.INTERRUPTED, reason="interrupted"))
    except SpfemuError as error:
        if not finished:
            raise
        ends.append(results.Partial(status=error.exit_code, reason=str(error)))


def make_result(series: Series, *, overhead_from_host: bool = False) -> results.Result:
    """Put the samples of a series into the form of the report."""
    plan, samples = series.prepared.plan, series.samples
    emulated = plan.target == "emulator"
    parameters = plan.parameters
    geometry = plan.geometry
    placement = plan.placement()
    events: dict[str, int] = {}
    for sample in samples:
        for name, count in sample.events.items():
            events[name] = events.get(name, 0) + count
    return results.Result(
        workload=plan.workload,
        target="emulator" if emulated else "host",
        protocol=plan.protocol if emulated else None,
        engine=plan.engine,
        mode="threads" if plan.mode == "threads" else "processes",
        workers=plan.workers,
        writers=plan.writers,
        seconds=plan.seconds,
        repeats=len(samples),
        seed=plan.seed,
        table_free=plan.table_free if emulated else None,
        faults_per_second=_estimate(series.faults_per_second()),
        operations_per_second=_estimate(series.operations_per_second()),
        writer_operations_per_second=(
            _estimate(series.writer_operations_per_second()) if plan.writers else None
        ),
        latency_ns=_latency(samples) if plan.latency else None,
        events={name: count for name, count in events.items() if emulated or count},
        hardware=_hardware(samples),
        violations=[v for s in samples for v in s.violations],
        seq_line=plan.seq_line if emulated else None,
        lookup=plan.lookup if emulated else None,
        khugepaged=plan.khugepaged and emulated,
        nodes=plan.nodes if emulated else None,
        size_bytes=parameters.size,
        areas=parameters.areas,
        pages=parameters.pages,
        writer_rate=parameters.rate,
        overlap=parameters.overlap,
        fault_overhead_ns=plan.fault_overhead_ns if emulated else 0.0,
        fault_overhead_from_host=overhead_from_host and emulated,
        overrides=overrides_of(series.prepared.program),
        transparent_hugepages=plan.huge_pages and not emulated,
        cpus=placement,
        oversubscribed=len(set(placement)) < len(placement),
        idle_percent=_mean([s.idle_percent for s in samples if s.idle_percent is not None]),
        probes=[_probe(s, s.probes) for s in samples if s.probes is not None],
        memory_bytes=geometry.size if emulated else None,
        memory_overhead_bytes=_overhead(geometry) if emulated else None,
        frames_bytes=geometry.nr_frames * PAGE_SIZE if emulated else None,
        swap_bytes=geometry.nr_swap * PAGE_SIZE if emulated else None,
    )


def _overhead(geometry: Geometry) -> int:
    """Bytes of a segment that are no frames (page tables stand in frames) and no swap area."""
    return geometry.size - (geometry.nr_frames + geometry.nr_swap) * PAGE_SIZE


def _estimate(samples: list[float]) -> results.Estimate:
    found = statistics.estimate(samples)
    return results.Estimate(
        median=found.median, low=found.low, high=found.high, samples=list(found.samples)
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _latency(samples: list[Sample]) -> results.Latency:
    return results.Latency(
        faults=_percentiles([s.fault_latency for s in samples]),
        writers=_percentiles([s.writer_latency for s in samples]),
    )


def _percentiles(histograms: list[Histogram]) -> results.Percentiles | None:
    found = latency.percentiles_ns(
        latency.merge(h.buckets for h in histograms),
        max(h.largest for h in histograms),
        cycles_per_second(),
    )
    if found is None:
        return None
    return results.Percentiles(
        p50=found["p50"],
        p90=found["p90"],
        p99=found["p99"],
        p99_9=found["p99.9"],
        max=found["max"],
    )


def _hardware(samples: list[Sample]) -> list[results.Hardware] | None:
    """Add the counts of all samples up; a kind that was missing once is missing."""
    counted = [s.hardware for s in samples if s.hardware is not None]
    if len(counted) < len(samples):
        return None
    totals = []
    for worker, first in enumerate(counted[0]):
        kinds = [k for k in first if all(k in sample[worker] for sample in counted)]
        sums = {k: sum(sample[worker][k] for sample in counted) for k in kinds}
        totals.append(results.Hardware(worker=worker, **sums))
    return totals


def _probe(sample: Sample, probes: tuple[Probe, Probe]) -> results.Probe:
    before, after = probes
    return results.Probe(
        cache_line_ns_before=_finite(before.line_ns),
        cache_line_ns_after=_finite(after.line_ns),
        clock_hertz_before=before.clock_ghz * 1e9,
        clock_hertz_after=after.clock_ghz * 1e9,
        repeated=sample.repeated,
        waited_percent=sample.waited_percent,
        stopped=sample.stopped,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def overrides_of(program: Program) -> list[results.Override]:
    """Name each override file with the hash of what was loaded and what it defines."""
    found = []
    for file, digest in program.files:
        names = [n for n, f in program.functions.items() if f.file == file]
        found.append(results.Override(file=file, sha256=digest, functions=names))
    return found
