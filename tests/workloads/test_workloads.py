# SPDX-License-Identifier: MIT
"""Workloads on the emulated kernel: they run on both engines and do what their names say."""

import pytest
from protocol_sets import GUARDED

from spfemu.errors import UsageError, WorkerDiedError
from spfemu.measure import build, run
from spfemu.measure.plan import Plan

QUICK = {"seconds": 0.04, "warmup": 0.01, "repeats": 1, "seed": 7}
TINY = {
    "page_fault1": {"size": 1 << 15},
    "page_fault1-read": {"size": 1 << 15},
    "pft": {"size": 1 << 15},
    "fork1": {"size": 1 << 15, "pages": 3},
    "spf_test": {"areas": 3, "pages": 2},
    "ebizzy": {"size": 1 << 15},
    "ebizzy-heap": {"size": 1 << 15},
    "gup_fast": {"size": 1 << 15, "areas": 2, "pages": 2},
    "mixed": {"size": 1 << 15, "areas": 2, "pages": 2},
    "uffd_missing": {"size": 1 << 15, "seconds": 0.2},
    "numa_remote": {"size": 1 << 15},
}
ALL = list(build.list_workloads())


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
    if build.workload(workload).faults:
        assert sample.events["PGFAULT"] > 0
    else:
        assert sample.faults == 0
    assert sample.events["CALL_FAILED"] == 0


@pytest.mark.parametrize("protocol", sorted(set(GUARDED) - {"spf"}))
@pytest.mark.parametrize("workload", ["android_start", "mprotect_storm"])
def test_native_protocols(workload, protocol):
    """The workloads that change VMAs most."""
    sample = one_sample(workload, workers=2, protocol=protocol)
    assert sample.events["PGFAULT"] > 0
    assert sample.events["CALL_FAILED"] == 0


def test_plain():
    sample = one_sample("page_fault1", workers=2, engine="plain", seconds=0.2)
    assert sample.events["PGFAULT"] > 0


@pytest.mark.parametrize("protocol", ["classic", "bare"])
def test_protocols(protocol):
    sample = one_sample("page_fault1", protocol=protocol)
    assert sample.events["SPF_ATTEMPT"] == 0
    assert (sample.events["FAULT_CLASSIC"] > 0) is (protocol == "classic")


def test_pft_maps_once():
    sample = one_sample("pft", workers=2)
    assert sample.events["CALL_MMAP"] == 1
    assert sample.events["CALL_MUNMAP"] == 0
    assert sample.events["CALL_MADVISE"] > 0
    assert one_sample("pft", workers=2, mode="processes").events["CALL_MMAP"] == 2


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


def test_fork1_cannot_run_without_copies():
    with pytest.raises(UsageError, match="fork1"):
        Plan("fork1", protocol="bare")
    assert Plan("fork1", protocol="bare", target="host").target == "host"


@pytest.mark.parametrize("protocol", ["classic", "spf", "vma-lock", "vma-refcount"])
@pytest.mark.parametrize("overlap", [False, True])
def test_gup_fast_pins_and_unpins(protocol, overlap):
    sample = one_sample(
        "gup_fast", protocol=protocol, workers=2, writers=1, overlap=overlap, seconds=0.2
    )
    counts = sample.events
    assert counts["GUP_FAST"] > 0
    assert counts["GUP_SLOW"] >= counts["GUP_FAULT"] > 0
    assert counts["GUP_PUT"] == counts["GUP_FAST"] + counts["GUP_SLOW"]


def test_gup_fast_finds_lost_writes_of_the_device(tmp_path):
    override = tmp_path / "late.py"
    override.write_text(
        "from spfemu.kernel import kernel\n\n\n"
        "@kernel\n"
        "def dma_write(cpu: int, index: int, value: int) -> None:\n"
        "    pass\n"
    )
    with pytest.raises(WorkerDiedError):
        one_sample("gup_fast", overrides=(str(override),))


def test_gup_fast_needs_faults_under_the_lock():
    with pytest.raises(UsageError, match="gup_fast"):
        Plan("gup_fast", protocol="bare")


def test_searches_of_ebizzy_find_lost_data(tmp_path):
    override = tmp_path / "zero.py"
    override.write_text(
        "from spfemu.kernel import kernel\n\n\n"
        "@kernel\n"
        "def copy_chunk(cpu: int, copy: int, source: int, pages: int) -> int:\n"
        "    return 0\n"
    )
    with pytest.raises(WorkerDiedError, match="EFAULT"):
        one_sample("ebizzy", overrides=(str(override),))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("table_free", ["rcu", "irq"])
def test_mixed_with_writers(overlap, table_free):
    sample = one_sample("mixed", writers=1, overlap=overlap, table_free=table_free, seconds=0.1)
    assert sample.operations > 0
    assert sample.writer_operations > 0
    if not overlap:
        assert sample.events["FAULT_SIGSEGV_MAPERR"] == 0


def test_rate_holds_a_writer_back():
    sample = one_sample("mixed", writers=1, rate=20.0, seconds=0.3)
    # one that is late does not catch up, so this holds however slow the machine is
    assert sample.writer_operations <= 20 * sample.seconds + 1


@pytest.mark.parametrize("protocol", GUARDED)
def test_a_monitor_serves_every_fault(protocol):
    sample = one_sample("uffd_missing", protocol=protocol, workers=2)
    waited = sample.events["UFFD_WAIT"]
    assert waited > 0
    assert sample.events["UFFD_COPY"] >= waited - 2
    assert sample.writer_operations > 0


@pytest.mark.parametrize("protocol", GUARDED)
def test_pages_move_to_who_uses_them(protocol):
    sample = one_sample("numa_remote", protocol=protocol, workers=2, nodes=2, seconds=0.3)
    assert sample.events["NUMA_HINT_FAULTS"] > 0
    # the second worker's part, and nothing of the first's, whose node it is already
    assert 0 < sample.events["NUMA_PAGE_MIGRATED"] <= 8


def test_with_one_node_nothing_is_scanned():
    sample = one_sample("numa_remote", workers=2)
    assert {n: c for n, c in sample.events.items() if "NUMA" in n and c} == {}


@pytest.mark.parametrize("workload", ["mixed", "fork1", "uffd_missing"])
def test_other_workloads_on_nodes(workload):
    sample = one_sample(workload, workers=2, writers=int(workload == "mixed"), nodes=2, seconds=0.3)
    assert sample.operations > 0


def test_a_monitor_comes_unasked_and_alone():
    assert Plan("uffd_missing", workers=2).writers == 1
    plan = Plan("uffd_missing", workers=2, mode="processes")
    assert plan.writers == 2
    assert plan.with_workers(3).writers == 3
    with pytest.raises(UsageError, match="monitor per process"):
        Plan("uffd_missing", writers=3)
    with pytest.raises(UsageError, match="bare"):
        Plan("uffd_missing", protocol="bare")
    with pytest.raises(UsageError, match="host"):
        Plan("uffd_missing", target="host")


def test_a_page_without_its_data_is_noticed(tmp_path):
    override = tmp_path / "zero.py"
    override.write_text(
        "from spfemu.kernel import kernel\n"
        "from spfemu.mm.mcopy import userfaultfd_zeropage\n\n\n"
        "@kernel\n"
        "def userfaultfd_copy(\n"
        "    cpu: int, ctx: int, dst: int, src: int, length: int, mode: int\n"
        ") -> int:\n"
        "    return userfaultfd_zeropage(cpu, ctx, dst, length, mode)\n"
    )
    with pytest.raises(WorkerDiedError, match="EIO"):
        one_sample("uffd_missing", overrides=(str(override),))


def test_writers_of_a_workload_without_refuse():
    functions = build.compose("mmap1").functions
    assert functions["writer_op"].file.endswith("defaults.py")


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
