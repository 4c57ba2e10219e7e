# SPDX-License-Identifier: MIT
"""The watchdog names what keeps operations from ending, and is not misled by a busy machine."""

import pytest
from watched import HANG_SECONDS, Watched

from spfemu.layout import CPU, MM, PAGE, RWSEM, RWSEM_WAITER
from spfemu.measure import build
from spfemu.mm.irq import CpuState
from spfemu.mm.rwsem_words import RWSEM_FLAG_WAITERS, RWSEM_WRITER_LOCKED
from spfemu.segment import Geometry, Segment
from spfemu.stress import watchdog as watchdogs
from spfemu.stress.hunt import HuntPlan, hunt
from spfemu.stress.lock_class import LockClass
from spfemu.stress.promises import Promise
from spfemu.stress.wait_graph import Wait, find_cycles, wait_graph


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_cpus=3, nr_frames=128, stress=1))
    made.cpus["state"] = CpuState.RUNNING
    yield made
    made.close()


@pytest.fixture
def watchdog(segment, monkeypatch):
    return Watched(segment, monkeypatch)


def wait_for(segment, cpu, kind, on, number=1):
    own = segment.stress_cpus[cpu]
    own["wait_class"], own["wait_on"], own["wait_number"] = kind, on, number


def deadlock(segment):
    """CPU 0 holds a page-table lock and waits for CPU 1, which spins for it, interrupts off."""
    ptl = segment.address["vmemmap"] + 70 * PAGE.SIZE + PAGE.ptl
    segment.pages["ptl"][70] = 1
    wait_for(segment, 0, LockClass.IRQS_OFF, segment.cpu(1))
    wait_for(segment, 1, LockClass.PTL, ptl)
    segment.cpus["ipi_request"][1] = 1
    segment.cpus["irqs_disabled"][1] = 1


def seen(watchdog, seconds, kind, **looks):
    with pytest.raises(watchdogs.StuckError) as stuck:
        watchdog.looks(seconds, **looks)
    assert stuck.value.kind == kind
    return str(stuck.value)


def test_cycles_are_found_once_each():
    def wait(*holders):
        return Wait(1, LockClass.PTL, 64, holders)

    assert find_cycles({0: wait(1), 1: wait(2), 2: wait(3)}) == []
    assert find_cycles({0: wait(1), 1: wait(2, 3), 2: wait(1), 3: wait()}) == [(1, 2)]
    assert find_cycles({2: wait(2)}) == [(2,)]
    assert find_cycles({0: wait(1), 1: wait(0), 2: wait(3), 3: wait(2)}) == [(0, 1), (2, 3)]


def test_a_deadlock_is_named_with_its_cycle(segment, watchdog):
    deadlock(segment)
    assert seen(watchdog, 2, "deadlock", run=(0, 1, 2)) == (
        "CPU 0 (worker) waits for CPU 1 (worker) to take an IPI, which has interrupts off and "
        "waits for the page-table lock of page[70], held by CPU 0 (worker)"
    )


def test_a_cycle_of_cpus_without_a_core_is_none_yet(segment, watchdog):
    deadlock(segment)
    watchdog.looks(5, run=(0, 2))  # CPU 1 may have got its lock and not know yet


def test_a_cycle_of_ever_new_waits_is_none(segment, watchdog):
    deadlock(segment)
    for number in range(12):
        segment.stress_cpus["wait_number"][0] = number
        watchdog.looks(0.25, run=(0, 1, 2))


def test_a_lock_of_who_has_left_is_named(segment, watchdog):
    segment.mms["page_table_lock"][0] = 3
    wait_for(segment, 1, LockClass.PAGE_TABLE_LOCK, segment.mm(0) + MM.page_table_lock)
    watchdog.looks(2, run=(1,))
    segment.cpus["state"][2] = CpuState.OFFLINE
    assert seen(watchdog, 2, "abandoned lock", run=(1,)) == (
        "CPU 1 (worker) waits for the page_table_lock of mm0, held by CPU 2 (writer), which has "
        "done its last operation"
    )


def sleep_for_mmap_lock(segment, watchdog, count):
    task = segment.cpu(1) + CPU.waiter + RWSEM_WAITER.task
    wait_for(segment, 1, LockClass.MMAP_LOCK, segment.mm(0) + MM.mmap_lock)
    segment.stress_cpus["sleep_on"][1] = task
    segment.stress_cpus["sleep_value"][1] = segment.word(task)
    segment.cpus["state"][1] = CpuState.IDLE
    segment.mms["mmap_lock"][0][RWSEM.count // 8] = count
    watchdog.sleeping = {1}


@pytest.mark.parametrize("run", [(0, 2), (0,)])
def test_a_sleeper_for_a_free_lock_has_lost_its_wakeup(segment, watchdog, run):
    """Unless somebody may still be on the way to wake it."""
    sleep_for_mmap_lock(segment, watchdog, RWSEM_FLAG_WAITERS | RWSEM_WRITER_LOCKED)
    watchdog.looks(4, run=(0, 2))
    segment.mms["mmap_lock"][0][RWSEM.count // 8] = RWSEM_FLAG_WAITERS
    if run == (0,):
        watchdog.looks(4, run=run)
        return
    assert seen(watchdog, 4, "lost wakeup", run=run).startswith(
        "CPU 1 (worker) sleeps and nobody wakes it, although what it waits for, the mmap_lock of "
    )


def test_who_is_woken_and_waits_for_a_core_may_still_take_the_lock(segment, watchdog):
    sleep_for_mmap_lock(segment, watchdog, RWSEM_FLAG_WAITERS)
    segment.stress_cpus["sleep_on"][2] = segment.cpu(2) + CPU.waiter + RWSEM_WAITER.task
    segment.cpus["state"][2] = CpuState.IDLE
    watchdog.looks(4, run=(0,))
    watchdog.sleeping = {1, 2}
    seen(watchdog, 4, "lost wakeup", run=(0,))


def test_a_sleeper_for_a_monitor_has_lost_nothing(segment, watchdog):
    sleep_for_mmap_lock(segment, watchdog, 0)
    wait_for(segment, 1, LockClass.MONITOR, segment.address["uffds"], number=2)
    watchdog.looks(4, run=(0, 2))


def test_starvation_is_counted_in_operations_of_others(segment, watchdog):
    watchdog.looks(30, run=(0, 1, 2), operations=1)  # a loaded machine
    said = seen(watchdog, 30, "starvation", run=(0, 1, 2), operations=1000)
    assert said.startswith("An operation of CPU 1 (worker) has lasted for ")


def test_who_has_had_no_core_does_not_starve(segment, watchdog):
    segment.cpus["state"][2] = CpuState.OFFLINE
    watchdog.looks(30, run=(0,), operations=1000)


def test_a_livelock_is_running_without_an_end(segment, watchdog):
    watchdog.looks(HANG_SECONDS - 1, run=(0, 1, 2))
    said = seen(watchdog, 5, "livelock", run=(0, 1, 2))
    assert said.startswith("CPUs run, and no operation has ended for ")


SPIN_IN_GATE = """
from spfemu.kernel import kernel
from spfemu.layout import CPU, SYSTEM
from spfemu.primitives import cmpxchg_acquire, load
from spfemu.mm.irq import local_irq_disable, local_irq_enable
from spfemu.mm.spinlock import spin_lock

@kernel
def speculative_page_walk_begin(cpu: int) -> None:
    local_irq_disable(cpu)

@kernel
def speculative_page_walk_end(cpu: int) -> None:
    local_irq_enable(cpu)

@kernel
def spin_trylock(cpu: int, lock: int) -> int:
    if lock >= load(load(cpu + CPU.system) + SYSTEM.vmemmap):
        spin_lock(cpu, lock)
        return 1
    return cmpxchg_acquire(lock, 0, load(cpu + CPU.id) + 1) == 0
"""


def test_a_deadlock_in_real_processes_is_named(tmp_path, monkeypatch):
    """Without the oracle that sees the order of the locks broken before they do it."""
    path = tmp_path / "spin_in_gate.py"
    path.write_text(SPIN_IN_GATE)
    kept = [module for module in build.oracles() if not module.__name__.endswith("lock_order")]
    monkeypatch.setattr(build, "oracles", lambda: kept)

    found = hunt(HuntPlan("spf", seconds=90.0, overrides=(str(path),))).violation

    assert found is not None
    assert found.promise is Promise.PROGRESS
    assert found.check == "watchdog: deadlock", found.what
    assert "to take an IPI, which has interrupts off" in found.what
    assert "waits for the page-table lock of page[" in found.what


def test_a_note_that_is_being_written_is_no_wait(segment, watchdog):
    wait_for(segment, 0, LockClass.PTL, 0, number=0)

    assert wait_graph(segment, watchdog.plan) == {}
