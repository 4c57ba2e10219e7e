# SPDX-License-Identifier: MIT
"""Sequence counts and references of single VMAs: every way to abort, and who keeps a VMA alive.

A is the faulting thread, B the writer.
"""

import pytest

from spfemu.engines.script import after, before, waits
from spfemu.mm.flags import PMD_SIZE, PUD_SIZE, Errno, FileOps, Prot
from spfemu.mm.vma import SlabState
from spfemu.stress.schedules.calls import RW

PROTOCOL = "spf-vma"
AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
EFAULT = int(Errno.EFAULT)
READ = int(Prot.READ)
AFTER_COPY_CHECK = after("vma_has_changed")
AFTER_SEQ1 = after("vma_has_changed", inside="pte_map_lock_speculative")
AFTER_SEQ2 = after("vma_has_changed", nth=2, inside="pte_map_lock_speculative")


@pytest.fixture
def area(under):
    """An area in which speculation succeeds."""
    under.map(AREA, 16)
    under.write(AREA, 1)
    return AREA


def split(scripted):
    """Return B about to protect the area's second half: the VMA is changed twice."""
    return scripted.thread("B", "mprotect", AREA + (8 << 12), 8 << 12, READ)


def grow(scripted):
    """Return B about to map a page behind the area, which grows; nobody has to flush."""
    return scripted.thread("B", "mmap", AREA + (16 << 12), 4096, RW, 0x32)


def test_without_a_writer_nothing_aborts(under, scripted, area):
    assert scripted.thread("A", "write", PAGE, 7).runs_to_end() == 0
    assert under.aborts() == {}
    assert "FAULT_CLASSIC" not in under.events(0)
    assert under.read(PAGE) == 7


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (before("read_once", inside="speculate_on_vma"), None),
        (after("read_once", inside="speculate_on_vma"), "VMA_COPY"),
        (after("copy_pvma"), "VMA_COPY"),
        (AFTER_COPY_CHECK, "PTE_MAP_LOCK_SEQ1"),
        (after("clear_page"), "PTE_MAP_LOCK_SEQ1"),
        (AFTER_SEQ1, "PTE_MAP_LOCK_SEQ2"),
        (after("spin_trylock"), "PTE_MAP_LOCK_SEQ2"),
        (AFTER_SEQ2, None),
    ],
    ids=str,
)
def test_where_a_writer_of_the_vma_shows(under, scripted, area, point, reason):
    a = scripted.thread("A", "write", PAGE, 7)
    a.runs_until(point)
    grow(scripted).runs_to_end()
    assert a.runs_to_end() == 0
    assert under.aborts() == ({reason: 1} if reason else {})
    assert under.read(PAGE) == 7


@pytest.mark.parametrize("point", [AFTER_COPY_CHECK, AFTER_SEQ1, before("set_pte")], ids=str)
def test_a_writer_of_another_vma_does_not_disturb(under, scripted, area, point):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)
    a.runs_until(point)
    b.runs_to_end()
    assert a.runs_to_end() == 0
    assert under.aborts() == {}


def test_a_writer_inside_is_odd(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = grow(scripted)
    b.runs_until(after("vm_write_begin"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.aborts() == {"ODD": 1}


def test_a_lookup_waits_for_the_tree(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)
    b.runs_until(after("mm_write_seqlock"))
    a.runs_until(waits())
    assert "get_vma" in a.stack
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.aborts() == {}


def test_a_lookup_during_which_the_tree_changes_begins_again(under, scripted, area):
    a = scripted.thread("A", "write", ELSEWHERE, 7)
    b = scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)
    a.runs_until(after("__find_vma", inside="get_vma"))
    b.runs_to_end()
    assert a.runs_to_end() == 0
    assert under.aborts() == {"ANON_VMA": 1}  # it was found, though not at first


def test_the_range_is_the_vmas(under, scripted, area):
    a = scripted.thread("A", "write", AREA + (12 << 12), 7)
    b = scripted.thread("B", "munmap", AREA + (8 << 12), 8 << 12)
    a.runs_until(after("get_vma"))
    b.runs_until(after("mmap_write_downgrade"))
    assert a.runs_to_end(letting=[b]) == -EFAULT
    b.runs_to_end()
    assert under.aborts() == {"UNMAPPED": 1}


def test_nothing_mapped(under, scripted, area):
    assert scripted.thread("A", "write", ELSEWHERE, 7).runs_to_end() == -EFAULT
    assert under.aborts() == {"UNMAPPED": 1}


def test_no_anonymous_memory(under, scripted, area):
    index = int(under.segment.vmas["vm_start"].tolist().index(AREA))
    under.segment.vmas["vm_ops"][index] = FileOps.SHMEM
    a = scripted.thread("A", "write", PAGE, 7)
    a.runs_until(before("do_locked_fault"))
    under.segment.vmas["vm_ops"][index] = 0
    assert a.runs_to_end() == 0
    assert under.aborts() == {"NO_SPECULATE": 1}


def test_access_error_is_decided_by_the_locked_path_alone(under, scripted, area):
    assert under.call("mprotect", AREA, 16 << 12, READ) == 0
    assert scripted.thread("A", "write", PAGE, 7).runs_to_end() == -EFAULT
    assert under.aborts() == {"ACCESS_ERROR": 1}


@pytest.mark.parametrize(("distance", "reason"), [(PUD_SIZE, "PUD"), (PMD_SIZE, "PMD")])
def test_missing_tables_are_made_by_the_locked_path(under, scripted, distance, reason):
    under.map(AREA, 2 * PUD_SIZE >> 12)
    under.write(AREA, 1)
    assert scripted.thread("A", "write", AREA + distance, 7).runs_to_end() == 0
    assert under.aborts() == {reason: 1}


def test_a_page_table_lock_that_is_held_is_not_waited_for(under, scripted, area):
    under.write(PAGE, 6)
    a = scripted.thread("A", "write", PAGE + 4096, 7)
    b = scripted.thread("B", "dontneed", PAGE, 4096)
    b.runs_until(after("xchg", inside="zap_pte_range"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end(letting=[a])
    assert under.aborts() == {"PTE_MAP_LOCK_PTL": 1}


# Taking the VMA away


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (after("get_vma"), "VMA_COPY"),
        (after("copy_pvma"), "VMA_COPY"),
        (AFTER_COPY_CHECK, "PTE_MAP_LOCK_SEQ1"),
        (AFTER_SEQ1, "PTE_MAP_LOCK_SEQ2"),
    ],
    ids=str,
)
def test_a_fault_does_not_commit_in_a_vma_that_is_gone(under, scripted, area, point, reason):
    a = scripted.thread("A", "write", PAGE, 7)
    b = scripted.thread("B", "munmap", AREA, 16 << 12)
    a.runs_until(point)
    b.runs_until(after("mmap_write_downgrade"))
    assert a.runs_to_end(letting=[b]) == -EFAULT
    b.runs_to_end()
    assert under.aborts() == {reason: 1}


def test_the_reference_keeps_the_vma(under, scripted, area):
    under.map(ELSEWHERE, 4)
    slot = int((under.segment.vmas["vm_start"] == ELSEWHERE).nonzero()[0][0])
    states = under.segment.vmas["slab_state"]
    a = scripted.thread("A", "read", ELSEWHERE)
    a.runs_until(after("get_vma"))
    assert under.call("munmap", ELSEWHERE, 4 << 12) == 0
    assert states[slot] == SlabState.IN_USE
    assert under.segment.vmas["vm_ref_count"][slot] == 1
    a.runs_until(after("put_vma"))
    assert states[slot] == SlabState.RCU_PENDING
    assert a.runs_to_end() == (-EFAULT, 0)


def test_a_vma_whose_last_reference_is_gone_cannot_be_taken(under, scripted, area):
    under.map(ELSEWHERE, 4)
    a = scripted.thread("A", "read", ELSEWHERE)
    a.runs_until(before("get_vma_unless_zero"))
    assert under.call("munmap", ELSEWHERE, 4 << 12) == 0
    assert a.runs_to_end() == (-EFAULT, 0)
    assert under.aborts() == {"UNMAPPED": 1}
