# SPDX-License-Identifier: MIT
"""Workloads on the real kernel of this machine."""

import platform

import pytest

from spfemu.measure import build, run
from spfemu.measure.plan import Plan

QUICK = {"seconds": 0.05, "warmup": 0.01, "repeats": 1, "seed": 7, "target": "host"}
SIZES = {"page_fault1": 1 << 18, "page_fault1-read": 1 << 18, "pft": 1 << 18}
FORK1 = {"workload": "fork1", "size": 1 << 15, "pages": 3}


@pytest.mark.parametrize("mode", ["threads", "processes"])
@pytest.mark.parametrize("workload", [n for n, w in build.workloads().items() if w.on_host])
def test_workload_runs(workload, mode):
    found = run.measure(Plan(workload, workers=2, mode=mode, size=SIZES.get(workload), **QUICK))
    assert found.operations_per_second.median > 0
    assert found.faults_per_second.median > 0 or not build.workload(workload).faults
    assert (found.target, found.protocol, found.table_free) == ("host", None, None)
    assert found.memory_bytes is None


def test_every_touched_page_is_a_fault():
    """Huge pages are off, so an operation of page_fault1 takes as many faults as it has pages."""
    plan = Plan("page_fault1", size=1 << 20, **QUICK)
    segments = run.Segments()
    prepared = run.prepare(plan)
    sample = run.take_sample(prepared, segments)
    operations = sample.events["CALL_MUNMAP"]
    assert operations > 0
    faults = sample.events["PGFAULT"]
    # a few more: page tables of the worker's own loop, and the interpreter around it
    assert 256 * operations <= faults <= 257 * operations + 200
    segments.close()


def test_workers_of_pft_touch_one_mapping():
    plan = Plan("pft", workers=2, size=1 << 16, **QUICK)
    sample = run.take_sample(run.prepare(plan), run.Segments())
    assert sample.events["CALL_MMAP"] == 1


@pytest.mark.parametrize("mode", ["threads", "processes"])
def test_faults_of_children_are_counted(mode):
    sample = run.take_sample(run.prepare(Plan(**FORK1, mode=mode, **QUICK)), run.Segments())
    forks = sample.events["CALL_FORK"]
    assert forks > 0
    # a child has faults of its own beside those on its three pages, on its stack at least
    assert sample.events["PGFAULT"] >= forks * 3 + (forks - 1) * 8


def test_a_child_that_fails_says_so(tmp_path):
    override = tmp_path / "bad.py"
    override.write_text(
        "from spfemu.kernel import kernel\n\n\n"
        "@kernel\n"
        "def child_work(cpu: int) -> int:\n"
        "    return -12\n"
    )
    with pytest.raises(run.WorkerDiedError, match="ENOMEM"):
        run.measure(Plan(**FORK1, overrides=(str(override),), **QUICK))


def test_a_child_that_is_killed_says_so(tmp_path):
    override = tmp_path / "bad.py"
    kill, getpid = (62, 39) if platform.machine() == "x86_64" else (129, 172)
    override.write_text(
        "from spfemu.kernel import kernel\n"
        "from spfemu.primitives import raw_syscall\n\n\n"
        "@kernel\n"
        "def child_work(cpu: int) -> int:\n"
        f"    pid = raw_syscall({getpid}, 0, 0, 0, 0, 0, 0)\n"
        f"    return raw_syscall({kill}, pid, 9, 0, 0, 0, 0)\n"
    )
    with pytest.raises(run.WorkerDiedError, match="EFAULT"):
        run.measure(Plan(**FORK1, overrides=(str(override),), **QUICK))


def test_writers_and_latencies():
    plan = Plan("mixed", writers=1, rate=2000.0, latency=True, **QUICK)
    found = run.measure(plan)
    assert found.writer_operations_per_second.median > 0
    assert found.latency_ns.faults.p50 > 0
    # waiting for the next turn is no part of a writer's operation
    assert found.latency_ns.writers.p50 < 500_000


def test_calls_that_fail_say_so(tmp_path):
    override = tmp_path / "bad.py"
    override.write_text(
        "from spfemu.kernel import kernel\n"
        "from spfemu.mm.syscalls import sys_mmap\n\n\n"
        "@kernel\n"
        "def workload_op(cpu: int) -> int:\n"
        "    return sys_mmap(cpu, 0, 0, 0, 0x22)\n"
    )
    with pytest.raises(run.WorkerDiedError, match="EINVAL"):
        run.measure(Plan("mmap1", overrides=(str(override),), **QUICK))
