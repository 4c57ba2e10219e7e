# SPDX-License-Identifier: MIT
"""Per-VMA reference counts of 6.15: every way to get or not to get one, and slots used again.

A is the faulting thread, B the writer.
"""

import pytest

from spfemu.checks import check_segment
from spfemu.engines.script import after, before, waits
from spfemu.mm.flags import Errno, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads

PROTOCOL = "vma-refcount"
AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
EFAULT = int(Errno.EFAULT)
READ = int(Prot.READ)
IN_LOOKUP = after("__find_vma", inside="lock_vma_under_rcu")
BEFORE_REFERENCE = before("cmpxchg_acquire", inside="vma_start_read")
AFTER_REFERENCE = after("cmpxchg_acquire", inside="vma_start_read")


@pytest.fixture
def area(under):
    """An area in which faults need nothing but a reference."""
    under.map(AREA, 16)
    under.write(AREA, 1)
    return AREA


def slot_of(process, address):
    """Slab index of the VMA that begins at an address."""
    vmas = process.segment.vmas
    (index,) = ((vmas["vm_start"] == address) & (vmas["slab_state"] == 1)).nonzero()[0]
    return int(index)


def refcnt(process, address=AREA):
    return int(process.segment.vmas["vm_refcnt"][slot_of(process, address)])


def test_a_fault_has_a_reference_while_it_lasts(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    a.runs_until(before("set_pte"))
    assert refcnt(under) == 2
    assert a.runs_to_end() == 0
    assert refcnt(under) == 1
    assert under.vma_lock() == {"SUCCESS": 1}
    assert "FAULT_CLASSIC" not in under.events(0)


def test_an_anon_vma_is_made_with_the_mmap_lock_taken_on_the_way(under, scripted):
    under.map(AREA, 16)
    a = scripted.thread("A", "write", PAGE, 7)
    assert a.runs_to_end() == 0
    assert under.vma_lock() == {"SUCCESS": 1}
    assert "FAULT_CLASSIC" not in under.events(0)
    assert under.read(PAGE) == 7


def test_no_mmap_lock_for_the_anon_vma_is_a_retry(under, scripted):
    under.map(AREA, 16)
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, FIXED)
    b.runs_until(before("vma_end_write_all"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.vma_lock() == {"RETRY": 1}
    assert under.events(0)["FAULT_CLASSIC"] == 1


def test_reads_need_no_anon_vma(under, scripted):
    under.map(AREA, 16)
    assert scripted.thread("A", "read", PAGE).runs_to_end() == (0, 0)
    assert under.vma_lock() == {"SUCCESS": 1}


@pytest.mark.parametrize("address", [AREA - 4096, AREA + (16 << 12), ELSEWHERE])
def test_nothing_mapped(under, scripted, area, address):
    assert scripted.thread("A", "write", address, 7).runs_to_end() == -EFAULT
    assert under.vma_lock() == {"ABORT_UNMAPPED": 1}
    assert under.events(0)["FAULT_SIGSEGV_MAPERR"] == 1


def test_access_error_is_final(under, scripted, area):
    assert under.call("mprotect", AREA, 16 << 12, READ) == 0
    assert scripted.thread("A", "write", PAGE, 7).runs_to_end() == -EFAULT
    assert under.vma_lock() == {"SUCCESS": 1}
    assert under.events(0)["FAULT_SIGSEGV_ACCERR"] == 1
    assert "FAULT_CLASSIC" not in under.events(0)


# Writers of the same VMA


def split(scripted):
    """Return B about to protect the area's second half: the VMA is split."""
    return scripted.thread("B", "mprotect", AREA + (8 << 12), 8 << 12, READ)


@pytest.mark.parametrize(
    ("reached", "point", "reason"),
    [
        (None, after("vma_start_write", inside="__split_vma"), "SEQ"),
        (IN_LOOKUP, after("vma_start_write", inside="__split_vma"), "SEQ"),
        (None, after("cmpxchg_acquire", inside="vma_enter_locked"), "BUSY"),
        (BEFORE_REFERENCE, after("vma_start_write", inside="__split_vma"), "SEQ_RECHECK"),
        (BEFORE_REFERENCE, after("cmpxchg_acquire", inside="vma_enter_locked"), "BUSY"),
    ],
    ids=str,
)
def test_a_writer_of_the_vma_keeps_faults_out(under, scripted, area, reached, point, reason):
    a = scripted.thread("A", "write", PAGE, 7)
    b = split(scripted)
    if reached is not None:
        a.runs_until(reached)
    b.runs_until(point)
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.vma_lock() == {f"ABORT_{reason}": 1}
    assert under.read(PAGE) == 7


@pytest.mark.parametrize("point", [AFTER_REFERENCE, before("set_pte")], ids=str)
def test_a_writer_sleeps_until_the_last_reader_wakes_it(under, scripted, area, point):
    a = scripted.thread("A", "write", PAGE, 7)
    b = split(scripted)
    a.runs_until(point)
    b.runs_until(waits())
    assert "vma_enter_locked" in b.stack
    c = scripted.thread("C", "write", PAGE + 4096, 8)
    c.runs_until(waits())  # it may not join A
    assert under.vma_lock(2) == {"SUCCESS": 1, "ABORT_BUSY": 1}  # the success prepared the area
    assert a.runs_to_end() == 0
    assert b.runs_to_end() == 0
    assert c.runs_to_end() == 0
    assert under.vma_lock() == {"SUCCESS": 1}


def test_the_last_reader_may_leave_before_the_writer_sleeps(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = split(scripted)
    a.runs_until(before("set_pte"))
    b.runs_until(before("futex_wait"))
    assert a.runs_to_end() == 0
    assert b.runs_to_end() == 0  # its word has changed: it does not sleep


def test_detaching_waits_for_who_is_about_to_see_that_it_is_locked(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", AREA, 16 << 12)
    a.runs_until(BEFORE_REFERENCE)
    b.runs_until(before("vma_mark_detached"))
    a.runs_until(AFTER_REFERENCE)
    b.runs_until(waits())
    assert "vma_mark_detached" in b.stack
    assert a.runs_to_end(letting=[b]) == -EFAULT
    b.runs_to_end()
    assert under.vma_lock() == {"ABORT_SEQ_RECHECK": 1}


def test_a_vma_detached_before_the_reference_is_looked_up_again(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", AREA, 16 << 12)
    a.runs_until(IN_LOOKUP)
    b.runs_until(after("mmap_write_downgrade"))
    assert a.runs_to_end(letting=[b]) == -EFAULT
    b.runs_to_end()
    assert under.vma_lock() == {"MISS": 1, "ABORT_UNMAPPED": 1}


def test_another_vma_may_be_there_after_a_miss(under, scripted, area):
    """The VMA goes into the one before it."""
    under.map(ELSEWHERE, 4, READ)
    under.map(ELSEWHERE + (4 << 12), 4)
    a = scripted.thread("A", "read", ELSEWHERE + (4 << 12))
    a.runs_until(before("vma_start_read"))
    assert under.call("mprotect", ELSEWHERE + (4 << 12), 4 << 12, READ) == 0
    assert a.runs_to_end() == (0, 0)
    assert under.vma_lock() == {"MISS": 1, "SUCCESS": 1}


# Slots that are used again while a fault still knows them


def test_a_slot_used_for_another_range_is_not_taken_for_the_old_one(under, scripted, area):
    a = scripted.thread("A", "write", ELSEWHERE + 4096, 7)
    under.map(ELSEWHERE, 4)
    slot = slot_of(under, ELSEWHERE)
    a.runs_until(before("vma_start_read"))
    # nothing is present there, so no CPU has to answer a flush
    assert under.call("munmap", ELSEWHERE, 4 << 12) == 0
    assert under.map(ELSEWHERE + (8 << 12), 4)
    assert slot_of(under, ELSEWHERE + (8 << 12)) == slot
    assert a.runs_to_end() == -EFAULT
    assert under.vma_lock() == {"ABORT_RANGE": 1}


@pytest.fixture
def two_processes(engine_of):
    """CPUs 0 and 1 run a process that has the area, CPU 2 another one."""
    with two_processes_under(engine_of(PROTOCOL)) as process:
        yield process
        assert check_segment(process.segment) == []


class two_processes_under:  # noqa: N801
    def __init__(self, engine):
        self.segment = Segment.create(Geometry(nr_cpus=3, nr_mms=2))
        self.process = Process(engine, self.segment)

    def __enter__(self):
        assert self.process.call("mmap", AREA, 16 << 12, RW, FIXED, cpu=0) == AREA
        return self.process

    def __exit__(self, *_):
        self.segment.close()


def fault_while_the_slot_goes_to_the_other_process(process):
    """A looks the area up; CPU 1 unmaps it, goes over to the other process and maps it there."""
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        a.runs_until(IN_LOOKUP)
        slot = slot_of(process, AREA)
        assert process.call("munmap", AREA, 16 << 12, cpu=1) == 0
        process.engine.call("switch_mm", process.segment.cpu(1), process.segment.mm(1))
        assert process.call("mmap", AREA, 16 << 12, RW, FIXED, cpu=1) == AREA
        assert slot_of(process, AREA) == slot
        return a.runs_to_end()


def test_a_slot_of_another_process_is_left_alone(two_processes):
    assert fault_while_the_slot_goes_to_the_other_process(two_processes) == -EFAULT
    assert two_processes.vma_lock() == {"ABORT_MM": 1}
