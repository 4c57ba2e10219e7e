# SPDX-License-Identifier: MIT
"""Workers start together, are pinned and watched, and none is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields
from enum import IntEnum

import psutil
import pytest

from spfemu.errors import WorkerDiedError, WorkerKilledError
from spfemu.measure import run
from spfemu.measure import workers as measure_workers
from spfemu.measure.plan import Plan
from spfemu.measure.probe import cycles_per_second
from spfemu.measure.run import Segments, prepare, take_sample
from spfemu.measure.workers import Workers, held_locks
from spfemu.mm.mmap_lock import HELD_OTHER, HELD_READ
from spfemu.segment import Geometry, Segment

SPIN = """
@kernel
def workload_op(cpu: int) -> int:
    store(cpu + CPU.operations, 1)
    while True:
        cpu_relax()
    return 0
"""
SPIN_WITH_LOCKS = """
@kernel
def workload_op(cpu: int) -> int:
    if load(cpu + CPU.id) == 1:
        mmap_write_lock(cpu, load(cpu + CPU.mm))
        spin_lock(cpu, load(cpu + CPU.system) + SYSTEM.zone_lock)
        store(cpu + CPU.operations, 1)
        while True:
            cpu_relax()
    return 0
"""
PANIC = """
@kernel
def workload_op(cpu: int) -> int:
    panic(71)
    return 0
"""
GIVE_UP = """
@kernel
def workload_op(cpu: int) -> int:
    return -22
"""
BAD_SETUP = """
@kernel
def workload_setup(cpu: int) -> int:
    return -12
"""


@pytest.fixture
def workers():
    """Make the workers of a plan on a fresh segment."""
    segments = Segments()

    def make(plan, **given):
        prepared = prepare(plan)
        return Workers(plan, prepared.engine, segments.get(plan), cycles_per_second(), **given)

    yield make
    segments.close()


def test_nobody_works_before_the_gate_opens(quick, workers):
    with workers(quick(target="host", mode="processes", workers=2)) as started:
        cpus = started.segment.cpus
        time.sleep(0.05)
        assert cpus["operations"].tolist() == [0, 0]
        started.open_gate()
        started.watch(0.05)
        started.stop()
        assert all(cpus["operations"] > 0)


@pytest.mark.parametrize("mode", ["threads", "processes"])
@pytest.mark.parametrize("target", ["emulator", "host"])
def test_workers_are_pinned_to_their_cpus(quick, workers, target, mode):
    plan = quick(target=target, mode=mode, workers=2)
    with workers(plan) as started:
        for index, cpu in enumerate(plan.placement()):
            assert os.sched_getaffinity(started.threads[index][1]) == {cpu}
        processes = {process for process, _ in started.threads.values()}
        assert len(processes) == (1 if (target, mode) == ("host", "threads") else 2)


def test_killed_worker_is_named_with_its_locks(quick, workers, override):
    plan = quick("page_fault1", workers=2, overrides=override(SPIN_WITH_LOCKS), size=8192)
    with workers(plan) as started:
        started.open_gate()
        while not started.segment.cpus["operations"][1]:
            started.watch(0.01)
        pid = started.threads[1][0]
        os.kill(pid, signal.SIGKILL)
        expected = (
            rf"worker 1 \(pid {pid}\) was killed by SIGKILL; "
            r"it held mmap_lock of mm 0 for writing, zone_lock"
        )
        with pytest.raises(WorkerKilledError, match=expected):
            started.watch(60)


@pytest.mark.parametrize("count", [1, 2])
def test_worker_that_is_killed_right_before_the_stop_is_named(quick, workers, count):
    with workers(quick(workers=count)) as started:
        started.open_gate()
        started.watch(0.01)
        for process, _thread in started.threads.values():
            os.kill(process, signal.SIGKILL)
        for group in started._groups:
            group.process.join()
        with pytest.raises(WorkerKilledError, match=r"worker 0 \(pid \d+\) was killed by SIGKILL"):
            started.stop()


def test_stopped_worker_is_noted_and_named(quick, workers):
    plan = quick("page_fault1", workers=2, size=8192)
    with workers(plan, hang_seconds=0.5) as started:
        started.open_gate()
        pid = started.threads[1][0]
        for number, stops in ((signal.SIGSTOP, 1), (signal.SIGCONT, 2), (signal.SIGSTOP, 3)):
            os.kill(pid, number)
            while started.stops < stops:
                started.watch(0.01)
        expected = (
            rf"worker 1 \(pid {pid}\) hangs: a signal stopped it .* and nothing has continued"
        )
        with pytest.raises(WorkerDiedError, match=expected):
            started.watch(60)


def test_a_long_start_is_told(quick, workers):
    told = []
    plan = quick(workers=32)
    with workers(plan, progress=lambda message, _fraction: told.append(message)):
        pass
    assert "forking worker 16 of 32" in told
    assert "forking worker 32 of 32" in told


def test_hung_worker_is_ended(quick, workers, override):
    plan = quick(target="host", mode="processes", overrides=override(SPIN))
    with workers(plan, hang_seconds=0.5) as started:
        started.open_gate()
        with pytest.raises(WorkerDiedError, match=r"worker 0 .* hangs: it has done nothing"):
            started.watch(60)


def test_who_gets_no_core_does_not_hang(quick, workers, override, monkeypatch):
    """Unless that has lasted for so long that nobody would wait for it."""
    plan = quick(target="host", overrides=override(SPIN))
    monkeypatch.setattr(measure_workers, "CROWDED_SECONDS", 3.0)
    with workers(plan, hang_seconds=0.3) as started:
        asked = []
        started.waited = lambda: asked.append(1) or [len(asked) * 10**9]
        started.open_gate()
        while len(asked) < 3:
            started.watch(0.01)
        with pytest.raises(WorkerDiedError, match=r"for [\d.]+ s \(\d+\.0 s without a core\)"):
            started.watch(60)


def test_hung_worker_does_not_hold_up_the_end(quick, workers, override):
    plan = quick(target="host", overrides=override(SPIN))
    with workers(plan, hang_seconds=0.3) as started:
        started.open_gate()
        while not started.segment.cpus["operations"][0]:
            started.watch(0.01)
        with pytest.raises(WorkerDiedError, match="hangs"):
            started.stop()


def test_kernel_assertion_is_named(quick, override):
    plan = quick(target="host", overrides=override(PANIC))
    with pytest.raises(WorkerDiedError, match="kernel assertion RBTREE_CORRUPT failed"):
        take_sample(prepare(plan), Segments())


def test_kernel_assertion_is_named_when_interpreted(quick, override):
    plan = quick(engine="plain", overrides=override(PANIC))
    with pytest.raises(WorkerDiedError, match="kernel assertion RBTREE_CORRUPT failed"):
        take_sample(prepare(plan), Segments())


def test_workload_that_fails_ends_the_run(quick, override):
    plan = quick(target="host", overrides=override(GIVE_UP))
    with pytest.raises(WorkerDiedError, match=r"gave up: an operation of mmap1 .* EINVAL"):
        take_sample(prepare(plan), Segments())


def test_setup_that_fails_ends_the_run(quick, override):
    plan = quick(target="host", overrides=override(BAD_SETUP))
    with pytest.raises(WorkerDiedError, match=r"set-up failed with ENOMEM"):
        take_sample(prepare(plan), Segments())


def test_no_permission_to_pin_is_said(quick, monkeypatch):
    def refuse(_process, _cpus):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with pytest.raises(WorkerDiedError, match=r"cannot pin a worker to CPU .* allow CPU affinity"):
        take_sample(prepare(quick(target="host")), Segments())


def test_locks_held_by_a_cpu():
    segment = Segment.create(Geometry(nr_cpus=2))
    assert held_locks(segment, 1) == []
    segment.cpus["mmap_lock_held"][1] = 1
    segment.mms["page_table_lock"][0] = 2
    segment.pages["ptl"][3] = 2
    segment.pages["ptl"][4] = 1
    segment.system["vma_lock"] = 2
    assert held_locks(segment, 1) == [
        "mmap_lock of mm 0 for reading",
        "page_table_lock of mm 0",
        "the page-table lock of frame 3",
        "vma_lock",
    ]
    assert held_locks(segment, 0) == ["the page-table lock of frame 4"]
    segment.cpus["mmap_lock_held"][1] = HELD_READ | HELD_OTHER
    assert held_locks(segment, 1)[0] == "mmap_lock of another mm for reading"
    segment.close()


def script(body):
    """Start a Python process of its own session; what it prints comes line by line."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def gone(pids):
    """Wait until all processes are gone."""
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("target", ["emulator", "host"])
def test_killed_parent_leaves_no_worker(target):
    parent = script(
        f"""
        from spfemu.measure.plan import Plan
        from spfemu.measure.probe import Prober, cycles_per_second
        from spfemu.measure.run import Segments, prepare
        from spfemu.measure.workers import Workers
        plan = Plan("mmap1", workers=2, target="{target}")
        prepared = prepare(plan)
        with Prober() as prober, Workers(
            plan, prepared.engine, Segments().get(plan), cycles_per_second()
        ) as workers:
            workers.open_gate()
            print("running")
            workers.watch(100)
        """
    )
    assert parent.stdout.readline() == "running\n"
    pids = [c.pid for c in psutil.Process(parent.pid).children(recursive=True)]
    assert len(pids) >= 2
    parent.kill()
    parent.communicate()
    assert gone(pids)


def test_ctrl_c_keeps_the_finished_repeats():
    parent = script(
        """
        from spfemu.measure.plan import Plan
        from spfemu.measure.run import make_result, run_series
        plan = Plan("mmap1", target="host", mode="processes", workers=2, seconds=0.02,
                    warmup=0, repeats=1000)
        series = run_series(plan, lambda message, fraction: print(message))
        print(series.partial.reason, make_result(series).repeats)
        """
    )
    for line in parent.stdout:
        if line.endswith("repeat 3\n"):
            break
    # as a terminal does: the whole group
    os.killpg(parent.pid, signal.SIGINT)
    out, errors = parent.communicate(timeout=60)
    assert errors == ""
    reason, repeats = out.splitlines()[-1].split()
    assert reason == "interrupted"
    assert 2 <= int(repeats) < 1000
    assert parent.returncode == 0


def test_ctrl_c_before_anything_is_finished(quick, monkeypatch):
    def interrupted(*_arguments, **_given):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "take_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run_series(quick(target="host"))


class Helper(IntEnum):
    """A kernel thread of these tests."""

    KHELPERD = 7


class PlanWithHelper(Plan):
    """A plan with one kernel thread."""

    @property
    def kthreads(self):
        return (Helper.KHELPERD,)

    @classmethod
    def like(cls, plan):
        """Return `plan` with the kernel thread."""
        return cls(**{f.name: getattr(plan, f.name) for f in fields(plan)})


COUNT_ROUNDS = """
@kernel
def kthread_op(cpu: int) -> int:
    mm = load(cpu + CPU.mm)
    if load(cpu + CPU.role) != 7 or load(mm + MM.mmap) != 0:
        return -22
    cpu_relax()
    return 0
"""


def test_kernel_threads_run_beside_the_workers_and_are_not_counted(quick, override):
    plan = PlanWithHelper.like(quick(overrides=override(COUNT_ROUNDS)))
    segments = Segments()
    sample = take_sample(prepare(plan), segments)
    cpus = segments.get(plan).cpus
    segments.close()
    assert (plan.nr_tasks, plan.nr_cpus, len(plan.placement())) == (1, 2, 1)
    assert len(cpus) == 2
    assert sample.operations > 0
    assert sample.writer_operations == 0
    assert not sample.violations


def test_kernel_thread_that_fails_is_named(quick):
    plan = PlanWithHelper.like(quick())
    segments = Segments()
    with pytest.raises(WorkerDiedError, match=r"^khelperd \(pid \d+\) gave up: .*EINVAL"):
        take_sample(prepare(plan), segments)
    segments.close()


@pytest.mark.parametrize("workload", ["page_fault1", "mmap1"])
def test_grace_periods_that_last_as_long_as_a_turn_on_the_cpu_exhaust_nothing(
    quick, monkeypatch, workload
):
    # one works while the others, who hold grace periods up, wait for the same CPU
    monkeypatch.setattr(Plan, "placement", lambda plan: [0] * plan.nr_tasks)
    plan = quick(workload, workers=4, size=1 << 14, seconds=0.3)
    segments = Segments()
    sample = take_sample(prepare(plan), segments)
    segments.close()
    assert sample.events["RCU_CALLBACK"] > 0
    assert sample.violations == []
