# SPDX-License-Identifier: MIT
"""Samples and the results that are made of them."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from spfemu import results, segment
from spfemu.errors import ExitCode, ResourceError, UsageError, WorkerDiedError
from spfemu.events import ABORT_REASONS, Event
from spfemu.layout import HIST_BUCKETS
from spfemu.measure import environment, races, run
from spfemu.measure.probe import Probe
from spfemu.measure.run import Histogram, Prepared, Sample, Segments, Series, make_result
from spfemu.segment import Geometry, Segment


def sample(faults=1000, seconds=0.5, **given):
    """Make a sample of round figures."""
    empty = Histogram(np.zeros(HIST_BUCKETS, np.int64), 0)
    return replace(
        Sample(
            seconds=seconds,
            faults=faults,
            operations=10,
            writer_operations=4,
            events={"PGFAULT": faults},
            fault_latency=empty,
            writer_latency=empty,
            hardware=None,
            idle_percent=None,
            waited_percent=None,
            violations=[],
            probes=(Probe(30.0, 3.0), Probe(31.0, 3.0)),
        ),
        **given,
    )


def series(plan, *samples):
    """Put samples together without running anything."""
    program = run.prepare(plan).program
    return Series(Prepared(plan, program, None, 0.0), list(samples))


def test_a_wait_that_began_before_the_window_fills_it_at_most():
    nobody = np.zeros((2, 0), np.int64)
    before = run._Counts(1.0, 0, 0, 0, nobody, 0.0, 0.0, [0, 0])
    after = replace(before, at=1.5, waited=[100_000_000, 700_000_000])
    assert run._waited_percent(before, replace(after, waited=[100_000_000, 0])) == 20.0
    assert run._waited_percent(before, after) == 100.0


def test_a_run_without_a_fault_is_inconclusive(quick):
    plan = quick("page_fault1", size=1 << 16)
    quiet = make_result(series(plan, sample(faults=0), sample(faults=0), sample()))
    assert "took no fault while it was measured" in races.no_fault(quiet)
    assert races.no_fault(make_result(series(plan, sample()))) is None
    calls = make_result(series(quick("mmap1"), sample(faults=0)))
    assert races.no_fault(calls) is None


def test_rates_and_counts(quick):
    plan = quick("page_fault1", target="host", size=8192)
    found = make_result(series(plan, sample(1000), sample(3000)))
    assert found.repeats == 2
    assert found.faults_per_second.samples == [2000.0, 6000.0]
    assert found.faults_per_second.median == 4000.0
    # an operation of page_fault1 is as many of will-it-scale's iterations as it touches pages
    assert found.operations_per_second.median == 10 * 2 / 0.5
    assert found.writer_operations_per_second is None
    assert found.events == {"PGFAULT": 4000}
    assert found.protocol is None
    assert [p.cache_line_ns_after for p in found.probes] == [31.0, 31.0]


def test_lost_probe_is_null(quick):
    lost = (Probe(float("inf"), 3.0), Probe(None, 3.0))
    found = make_result(series(quick(target="host"), sample(probes=lost)))
    assert found.probes[0].cache_line_ns_before is None
    assert found.probes[0].cache_line_ns_after is None


def test_writers_have_a_rate(quick):
    found = make_result(series(quick("mixed", target="host", writers=1), sample()))
    assert found.writer_operations_per_second.median == 8.0


def test_hardware_counts_are_added_and_absent_is_not_zero(quick):
    first = [{"cycles": 10, "instructions": 20}, {"cycles": 1}]
    second = [{"cycles": 5}, {"cycles": 2, "cache_misses": 7}]
    plan = quick(target="host", workers=2)
    found = make_result(series(plan, sample(hardware=first), sample(hardware=second)))
    assert [(h.worker, h.cycles, h.instructions) for h in found.hardware] == [
        (0, 15, None),
        (1, 3, None),
    ]
    assert found.hardware[1].cache_misses is None
    found = make_result(series(plan, sample(hardware=first), sample(hardware=None)))
    assert found.hardware is None


@pytest.mark.parametrize("mode", ["threads", "processes"])
def test_two_workers_take_faults(quick, mode):
    plan = quick("page_fault1", workers=2, mode=mode, size=1 << 18, latency=True)
    found = run.measure(plan)
    assert found.violations == []
    assert found.faults_per_second.median > 0
    assert found.operations_per_second.median > 0
    assert found.events["PGFAULT"] == found.events["FAULT_WRITE"] > 0
    aborts = sum(found.events[reason.name] for reason in ABORT_REASONS)
    assert found.events["SPF_ABORT"] == aborts
    assert found.latency_ns.faults.p50 > 0
    assert found.latency_ns.faults.p50 <= found.latency_ns.faults.max
    assert found.latency_ns.writers is None
    assert found.memory_overhead_bytes < found.memory_bytes
    report = results.Report(
        command=["test"], seed=plan.seed, environment=environment.record(), results=[found]
    )
    jsonschema.validate(json.loads(results.encode(report)), results.schema())


@pytest.mark.parametrize("mode", ["threads", "processes"])
def test_speculation_needs_another_thread(quick, mode):
    found = run.measure(quick("page_fault1", mode=mode, size=1 << 16))
    assert (found.events["SPF_ATTEMPT"] > 0) is (mode == "threads")


def test_same_seed_gives_the_same_single_worker(quick):
    """The random choices of a workload come from the seed alone."""
    segments = Segments()
    plan = quick("mixed")
    states = []
    for seed in (1, 1, 2**40):
        states.append(segments.get(replace(plan, seed=seed)).cpus["random"].tolist())
    assert states[0] == states[1] != states[2]
    segments.close()


def test_sample_around_which_the_probe_moved_is_repeated(quick, monkeypatch, fake_prober):
    class Entered(fake_prober):
        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

    taken = []
    monkeypatch.setattr(run, "take_sample", lambda *_a, **_k: taken.append(1) or sample())
    monkeypatch.setattr(run, "Prober", lambda: Entered(30.0, 90.0, 90.0))
    found = run.run_series(quick(target="host", repeats=2))
    assert len(taken) == 3
    assert [s.repeated for s in found.samples] == [1, 0]
    monkeypatch.setattr(run, "Prober", lambda: Entered(*[30.0, 90.0] * 10))
    taken.clear()
    found = run.run_series(quick(target="host", repeats=2))
    assert len(taken) == 3  # one more than asked for, then it is taken as it is
    assert len(found.samples) == 2


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (WorkerDiedError("worker 1 died"), ExitCode.WORKER_DIED, "worker 1 died"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
    ],
)
def test_what_ends_a_series_early_leaves_what_was_finished(
    quick, monkeypatch, fake_prober, error, status, reason
):
    class Entered(fake_prober):
        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

    taken = []

    def take(*_arguments, **_how):
        if len(taken) == 2:
            raise error
        taken.append(sample())
        return taken[-1]

    monkeypatch.setattr(run, "take_sample", take)
    monkeypatch.setattr(run, "Prober", lambda: Entered(30.0))
    found = run.run_series(quick(target="host", repeats=5))
    assert len(found.samples) == 2
    assert found.partial == results.Partial(status=status, reason=reason)
    with pytest.raises(type(error)):  # nothing is finished
        run.run_series(quick(target="host", repeats=5))


def test_sample_in_which_a_worker_was_stopped_is_repeated_or_told(quick, monkeypatch, fake_prober):
    class Entered(fake_prober):
        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

    plan = quick(target="host", repeats=2)
    stops = [True, False, False]
    monkeypatch.setattr(run, "take_sample", lambda *_a, **_k: sample(stopped=stops.pop(0)))
    monkeypatch.setattr(run, "Prober", lambda: Entered(30.0))
    found = run.run_series(plan)
    assert [(s.repeated, s.stopped) for s in found.samples] == [(1, False), (0, False)]
    assert races.stopped(make_result(found)) is None
    stops = [True, True, True]
    told = races.stopped(make_result(run.run_series(plan)))
    assert told == "a signal stopped a worker in 2 of 2 samples, whose rates are too low"


def test_counters_are_read_again_if_the_reading_took_long(quick, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 2.0001])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    plan = quick("page_fault1", size=1 << 16)
    segment = Segment.create(plan.geometry)
    segment.cpus["operations"][0] = 5

    class Nobody:
        def waited(self):
            return None

    assert run._read(plan, segment, Nobody()).at == 2.0001
    segment.close()


def test_violations_are_reported(quick, monkeypatch):
    monkeypatch.setattr(run, "_check", lambda _plan, _segment: ["frame 7 is lost"])
    found = run.measure(quick("page_fault1", size=1 << 16, repeats=2))
    assert found.violations == ["frame 7 is lost"] * 2


def test_override_is_recorded(quick, override):
    files = override("@kernel\ndef workload_setup(cpu: int) -> int:\n    return 0\n")
    found = run.measure(quick(target="host", overrides=files))
    assert found.overrides[0].file == files[0]
    assert found.overrides[0].functions == ["workload_setup"]
    assert len(found.overrides[0].sha256) == 64


def test_fault_overhead_is_spun(quick, monkeypatch):
    seen = []
    prepare_workers = run.Workers._prepare

    def note(self, rate):
        prepare_workers(self, rate)
        seen.append((self.segment.cpus["fault_overhead"].tolist(), rate))

    monkeypatch.setattr(run.Workers, "_prepare", note)
    run.measure(quick("page_fault1", size=1 << 16, fault_overhead_ns=500.0))
    # a sample during which the machine was disturbed is taken again
    assert seen
    for cycles, rate in seen:
        assert cycles == [round(500e-9 * rate)]


def test_segments_are_used_again(quick):
    segments = Segments()
    plan = quick("page_fault1", size=1 << 16)
    first = segments.get(plan)
    first.cpus["event"][0, Event.PGFAULT] = 5
    again = segments.get(plan)
    assert again is first
    assert again.cpus["event"].sum() == 0
    assert segments.get(plan.with_workers(2)) is not first
    segments.close()


def test_no_memory_for_the_segment_is_said(quick):
    with pytest.raises(ResourceError, match="MiB are available: use fewer workers or a smaller"):
        Segments().get(quick("page_fault1", size=1 << 40))


def test_memory_that_is_not_there_names_what_to_make_smaller(quick, monkeypatch):
    monkeypatch.setattr(segment, "_available_memory", lambda: 1 << 20)
    for given, advice in (
        ({}, "--size"),
        ({"memory": 64 << 20}, "--memory"),
        ({"swap": 1 << 20}, "--size or --swap"),
    ):
        with pytest.raises(ResourceError, match=f"use fewer workers or a smaller {advice}$"):
            Segments().get(quick("page_fault1", **given))


def test_what_the_workload_never_reads_is_refused(quick):
    run.prepare(quick("mixed", areas=3, pages=2, size=65536))
    with pytest.raises(UsageError, match="--size means nothing to spf_test: leave it out"):
        run.prepare(quick("spf_test", size=65536))


def test_minor_faults_of_this_thread():
    import os
    import threading

    count = run._minor_faults(os.getpid(), threading.get_native_id())
    touched = bytearray(1 << 24)
    touched[:: 1 << 12] = b"x" * (1 << 12)
    assert run._minor_faults(os.getpid(), threading.get_native_id()) > count


def test_geometry_is_what_is_needed():
    segment = Segment.create(Geometry(nr_cpus=2, nr_mms=2))
    assert len(segment.mms) == 2
    segment.close()
