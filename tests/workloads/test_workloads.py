# SPDX-License-Identifier: MIT
"""Workloads on the emulated kernel: they run on both engines and do what their names say."""

import pytest

from spfemu.errors import UsageError
from spfemu.measure import build, run
from spfemu.measure.plan import Plan

QUICK = {"seconds": 0.04, "warmup": 0.01, "repeats": 1, "seed": 7}
TINY = {
    "page_fault1": {"size": 1 << 15},
    "page_fault1-read": {"size": 1 << 15},
    "pft": {"size": 1 << 15},
    "fork1": {"size": 1 << 15, "pages": 3},
    "spf_test": {"areas": 3, "pages": 2},
    "mixed": {"size": 1 << 15, "areas": 2, "pages": 2},
}
ALL = list(build.list_workloads())
NO_FAULTS = ("mmap1", "brk1")


def one_sample(workload, **given):
    """Take one sample; the checks of the segment must find nothing."""
    plan = Plan(workload, **{**QUICK, **TINY.get(workload, {}), **given})
    segments = run.Segments()
    sample = run.take_sample(run.prepare(plan), segments)
    segments.close()
    assert sample.violations == []
    return sample


@pytest.mark.parametrize("mode", ["threads", "processes"])
@pytest.mark.parametrize("workload", ALL)
def test_native(workload, mode):
    sample = one_sample(workload, workers=2, mode=mode)
    assert sample.operations > 0
    assert (sample.events["PGFAULT"] > 0) is (workload not in NO_FAULTS)
    assert sample.events["CALL_FAILED"] == 0


@pytest.mark.parametrize("workload", ALL)
def test_plain(workload):
    sample = one_sample(workload, workers=2, engine="plain", seconds=0.2)
    assert sample.events["PGFAULT"] > 0 or workload in NO_FAULTS


@pytest.mark.parametrize("protocol", ["classic", "bare"])
def test_protocols(protocol):
    sample = one_sample("page_fault1", protocol=protocol)
    assert sample.events["SPF_ATTEMPT"] == 0
    assert (sample.events["FAULT_CLASSIC"] > 0) is (protocol == "classic")


def test_page_fault1_writes_every_page():
    sample = one_sample("page_fault1")
    rounds = sample.events["CALL_MUNMAP"]
    assert sample.events["PGFAULT"] == sample.events["ANON_PAGE"] == 8 * rounds > 0
    assert sample.events["PAGES_ZAPPED"] == 8 * rounds


def test_page_fault1_read_maps_the_zero_page():
    sample = one_sample("page_fault1-read")
    assert sample.events["ANON_PAGE"] == 0
    assert sample.events["ANON_ZERO_PAGE"] == sample.events["FAULT_READ"] > 0


def test_pft_maps_once():
    sample = one_sample("pft", workers=2)
    assert sample.events["CALL_MMAP"] == 1
    assert sample.events["CALL_MUNMAP"] == 0
    assert sample.events["CALL_MADVISE"] > 0
    assert one_sample("pft", workers=2, mode="processes").events["CALL_MMAP"] == 2


def test_mmap1_touches_nothing():
    sample = one_sample("mmap1")
    assert sample.events["PGFAULT"] == 0
    assert sample.events["CALL_MMAP"] == sample.events["CALL_MUNMAP"] > 0


def test_brk1_only_moves_the_break():
    sample = one_sample("brk1")
    # to and fro in each round, twice in the set-up
    assert sample.events["CALL_BRK"] % 2 == 0
    assert sample.events["CALL_BRK"] > 2
    assert sample.events["CALL_MMAP"] == 0


def test_malloc1_touches_as_many_pages_as_it_is_told():
    sample = one_sample("malloc1", pages=3)
    assert sample.events["ANON_PAGE"] == 3 * sample.events["CALL_MMAP"] > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_fork1_copies_what_the_child_writes(workers):
    sample = one_sample("fork1", mode="processes", workers=workers)
    forks = sample.events["CALL_FORK"]
    assert forks > 0
    assert sample.events["WP_COPY"] == 3 * forks
    # the parent finds each page its own again, but for the first round
    assert sample.events["WP_REUSE"] == 8 * (forks - workers)


def test_fork1_in_one_process_speculates():
    sample = one_sample("fork1", workers=2, seconds=0.2)
    assert sample.events["SPF_ATTEMPT_WP"] > 0
    assert sample.events["WP_COPY"] > 0


@pytest.mark.parametrize("given", [{"target": "host"}, {"protocol": "bare"}], ids=str)
def test_fork1_says_where_it_cannot_run(given):
    with pytest.raises(UsageError, match="fork1"):
        Plan("fork1", **given)


def test_spf_test_maps_areas_and_touches_pages():
    sample = one_sample("spf_test", areas=3, pages=2)
    maps = sample.events["CALL_MMAP"]
    assert maps == sample.events["CALL_MUNMAP"] > 0
    assert maps % 3 == 0
    assert sample.events["FAULT_WRITE"] == 2 * maps


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("table_free", ["rcu", "irq"])
def test_mixed_with_writers(overlap, table_free):
    sample = one_sample("mixed", writers=1, overlap=overlap, table_free=table_free, seconds=0.1)
    assert sample.operations > 0
    assert sample.writer_operations > 0
    for call in ("CALL_MMAP", "CALL_MUNMAP", "CALL_MPROTECT", "CALL_MADVISE"):
        assert sample.events[call] > 0
    if not overlap:
        assert sample.events["FAULT_SIGSEGV_MAPERR"] == 0


def test_rate_holds_a_writer_back():
    sample = one_sample("mixed", writers=1, rate=20.0, seconds=0.3)
    # one that is late does not catch up, so this holds however slow the machine is
    assert sample.writer_operations <= 20 * sample.seconds + 1


def test_writers_of_a_workload_without_refuse():
    functions = build.compose("mmap1").functions
    assert functions["writer_op"].file.endswith("no_writers.py")


@pytest.mark.parametrize("protocol", ["spf", "vma-lock"])
def test_latched_lookups(protocol):
    sample = one_sample("mixed", protocol=protocol, writers=1, lookup="latch", seconds=0.1)
    assert sample.operations > 0


@pytest.mark.parametrize("seq_line", ["shared", "own"])
def test_place_of_the_sequence(seq_line):
    assert one_sample("page_fault1", workers=2, seq_line=seq_line).operations > 0


def test_every_workload_describes_itself():
    for name, workload in build.workloads().items():
        assert workload.description.endswith((".", ").")), name
        assert len(workload.description) < 90
        parameters = workload.parameters()
        assert workload.needs(parameters).vmas > 0
        assert workload.iterations(parameters) >= 1
