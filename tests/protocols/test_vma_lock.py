# SPDX-License-Identifier: MIT
"""Per-VMA locks of 6.4: every way in which a fault gets or does not get the lock of its VMA.

A is the faulting thread, B the writer.
"""

import pytest

from spfemu.engines.script import after, before, waits
from spfemu.mm.flags import PMD_SIZE, Errno, FileOps, Prot
from spfemu.stress.schedules.calls import RW

PROTOCOL = "vma-lock"
AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
EFAULT = int(Errno.EFAULT)
READ = int(Prot.READ)


@pytest.fixture
def area(under):
    """An area in which faults need nothing but the lock of the VMA."""
    under.map(AREA, 16)
    under.write(AREA, 1)
    return AREA


def test_a_fault_takes_the_lock_of_its_vma_alone(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    assert a.runs_to_end() == 0
    assert under.vma_lock() == {"SUCCESS": 1}
    assert "FAULT_CLASSIC" not in under.events(0)
    assert under.read(PAGE) == 7


def test_page_tables_are_made_under_the_lock(under, scripted, area):
    under.map(AREA + (16 << 12), 2 * PMD_SIZE >> 12)  # merged into the area
    a = scripted.thread("A", "write", AREA + PMD_SIZE, 7)
    assert a.runs_to_end() == 0
    assert under.vma_lock() == {"SUCCESS": 1}
    assert under.read(AREA + PMD_SIZE) == 7


@pytest.mark.parametrize("call", ["read", "write"])
def test_without_anon_vma_the_fault_takes_the_mmap_lock(under, scripted, call):
    under.map(AREA, 16)
    a = scripted.thread("A", call, PAGE, *([7] if call == "write" else []))
    assert a.runs_to_end() in (0, (0, 0))
    assert under.vma_lock() == {"ABORT_ANON_VMA": 1}
    assert under.events(0)["FAULT_CLASSIC"] == 1


def test_nothing_mapped(under, scripted, area):
    assert scripted.thread("A", "write", ELSEWHERE, 7).runs_to_end() == -EFAULT
    assert under.vma_lock() == {"ABORT_UNMAPPED": 1}


def test_the_address_before_a_vma_is_not_in_it(under, scripted, area):
    assert scripted.thread("A", "write", AREA - 4096, 7).runs_to_end() == -EFAULT
    assert under.vma_lock() == {"ABORT_UNMAPPED": 1}


def test_no_anonymous_memory(under, scripted, area):
    index = int(under.segment.vmas["vm_start"].tolist().index(AREA))
    under.segment.vmas["vm_ops"][index] = FileOps.SHMEM
    a = scripted.thread("A", "write", PAGE, 7)
    a.runs_until(before("do_locked_fault"))
    under.segment.vmas["vm_ops"][index] = 0
    assert a.runs_to_end() == 0
    assert under.vma_lock() == {"ABORT_NOT_ANON": 1}


def test_access_error_is_left_to_the_locked_path(under, scripted, area):
    assert under.call("mprotect", AREA, 16 << 12, READ) == 0
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "mprotect", AREA, 16 << 12, RW)
    a.runs_until(before("down_read_trylock", inside="do_locked_fault"))
    assert under.vma_lock() == {"ACCESS_ERROR": 1}
    b.runs_to_end(letting=[a])
    assert a.runs_to_end() == 0
    assert under.read(PAGE) == 7


# Writers of the same VMA


def protect(scripted):
    """Return B about to protect the area's second half: the VMA is split."""
    return scripted.thread("B", "mprotect", AREA + (8 << 12), 8 << 12, READ)


def test_a_vma_that_is_locked_for_writing_keeps_faults_out(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = protect(scripted)
    b.runs_until(after("vma_start_write", inside="__split_vma"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.vma_lock() == {"ABORT_SEQ": 1}
    assert under.read(PAGE) == 7


def test_the_lock_itself_is_held_for_a_moment(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = protect(scripted)
    b.runs_until(after("down_write", inside="vma_start_write"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.vma_lock() == {"ABORT_BUSY": 1}


def test_a_writer_between_the_first_look_and_the_lock_is_seen_again(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = protect(scripted)
    a.runs_until(before("down_read_trylock", inside="vma_start_read"))
    b.runs_until(after("vma_start_write", inside="__split_vma"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.vma_lock() == {"ABORT_SEQ_RECHECK": 1}


@pytest.mark.parametrize(
    "point",
    [
        after("__find_vma", inside="lock_vma_under_rcu"),
        before("down_read_trylock", inside="vma_start_read"),
    ],
    ids=str,
)
def test_a_split_before_the_lock_moves_the_range(under, scripted, area, point):
    a = scripted.thread("A", "write", AREA + (12 << 12), 7)
    b = scripted.thread("B", "mprotect", AREA + (8 << 12), 8 << 12, READ)
    a.runs_until(point)
    b.runs_to_end(letting=[a])
    assert a.runs_to_end() in (0, -EFAULT)
    assert sum(under.vma_lock().values()) == 1
    assert under.vma_lock().keys() <= {"ABORT_RANGE", "ACCESS_ERROR"}


def test_a_split_that_leaves_the_address_does_not_matter_once_it_is_over(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", AREA + (8 << 12), 8 << 12)
    a.runs_until(after("__find_vma", inside="lock_vma_under_rcu"))
    b.runs_to_end(letting=[a])
    assert a.runs_to_end() == 0
    assert under.vma_lock() == {"SUCCESS": 1}


def test_a_vma_detached_before_the_lock_is_looked_up_again(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", AREA, 16 << 12)
    a.runs_until(before("down_read_trylock", inside="vma_start_read"))
    # the VMA is unlocked by the downgrade, and its anon_vma and range are still there
    b.runs_until(after("mmap_write_downgrade"))
    assert a.runs_to_end(letting=[b]) == -EFAULT
    b.runs_to_end()
    assert under.vma_lock() == {"MISS": 1, "ABORT_UNMAPPED": 1}


def test_a_writer_waits_for_the_fault_inside(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", AREA, 16 << 12)
    a.runs_until(before("set_pte"))
    b.runs_until(waits())
    assert "vma_start_write" in b.stack
    assert a.runs_to_end() == 0
    b.runs_to_end()
    assert under.vma_lock() == {"SUCCESS": 1}
    assert under.call("read", PAGE) == (-EFAULT, 0)


def test_a_reader_that_leaves_wakes_the_writer_that_sleeps(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", AREA, 16 << 12)
    a.runs_until(before("set_pte"))
    assert b.runs_to_end(letting=[a]) == 0
    # the page was mapped and is gone before A could use it
    assert a.runs_to_end() == -EFAULT
    assert under.vma_lock() == {"SUCCESS": 1, "ABORT_UNMAPPED": 1}


# Writers elsewhere


def test_a_writer_of_another_vma_does_not_disturb(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)
    b.runs_until(before("vma_end_write_all"))
    assert a.runs_to_end() == 0
    b.runs_to_end()
    assert under.vma_lock() == {"SUCCESS": 1}


def test_a_mapping_that_grows_keeps_faults_out(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "mmap", AREA + (16 << 12), 4096, RW, 0x32)
    b.runs_until(before("vma_end_write_all"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.vma_lock() == {"ABORT_SEQ": 1}


def test_faults_go_on_beside_the_second_part_of_munmap(under, scripted, area):
    under.map(ELSEWHERE, 4)
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", ELSEWHERE, 4 << 12)
    b.runs_until(after("mmap_write_downgrade"))
    assert a.runs_to_end() == 0
    b.runs_to_end()
    assert under.vma_lock() == {"SUCCESS": 1}


def test_a_new_mapping_stays_locked_until_its_writer_is_done(under, scripted, area):
    b = scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)
    b.runs_until(after("vma_link"))
    a = scripted.thread("A", "read", ELSEWHERE)
    assert a.runs_to_end(letting=[b]) == (0, 0)
    b.runs_to_end()
    assert under.vma_lock() == {"ABORT_SEQ": 1}
