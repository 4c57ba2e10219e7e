# SPDX-License-Identifier: MIT
"""Lookups under a lock of the VMA tree; what comes behind the lookup is tested with `spf-vma`.

A is the faulting thread, B the writer, C another faulting thread.
"""

import pytest

from spfemu.engines.script import after, before, waits
from spfemu.mm.flags import PMD_SIZE, Errno, Prot
from spfemu.mm.vma import SlabState
from spfemu.stress.schedules.calls import RW

PROTOCOL = "spf-vma-v11"
AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
EFAULT = int(Errno.EFAULT)


@pytest.fixture
def area(under):
    """An area in which speculation succeeds."""
    under.map(AREA, 16)
    under.write(AREA, 1)
    return AREA


def map_elsewhere(scripted):
    """Return B about to change the tree, but no VMA that is there."""
    return scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)


def slot_of(under, start):
    return int((under.segment.vmas["vm_start"] == start).nonzero()[0][0])


def lock(under):
    return int(under.segment.mms["mm_rb_lock"][0])


def test_without_a_writer_nothing_aborts(under, scripted, area):
    assert scripted.thread("A", "write", PAGE, 7).runs_to_end() == 0
    assert under.aborts() == {}
    assert "FAULT_CLASSIC" not in under.events(0)
    assert (under.read(PAGE), lock(under)) == (7, 0)


def test_a_lookup_waits_for_the_writer_of_the_tree(under, scripted, area):
    a, b = scripted.thread("A", "write", PAGE, 7), map_elsewhere(scripted)
    b.runs_until(after("write_lock"))
    a.runs_until(waits())
    assert "read_lock_slowpath" in a.stack
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert (under.aborts(), lock(under)) == ({}, 0)


def test_the_writer_waits_for_lookups_and_keeps_new_ones_out(under, scripted, area):
    a, b = scripted.thread("A", "write", PAGE, 7), map_elsewhere(scripted)
    c = scripted.thread("C", "write", PAGE + 4096, 8)
    a.runs_until(after("vma_rb_lookup"))
    b.runs_until(waits())
    assert "write_lock" in b.stack
    c.runs_until(waits())
    assert "read_lock_slowpath" in c.stack
    a.runs_until(after("read_unlock"))
    b.runs_until(before("write_unlock"))
    assert "read_lock_slowpath" in c.stack
    b.runs_to_end()
    assert (a.runs_to_end(), c.runs_to_end()) == (0, 0)
    assert (under.aborts(), lock(under)) == ({}, 0)


def test_two_lookups_pass_each_other(under, scripted, area):
    a = scripted.thread("A", "write", PAGE, 7)
    a.runs_until(after("vma_rb_lookup"))
    assert scripted.thread("C", "write", PAGE + 4096, 8).runs_to_end() == 0
    assert a.runs_to_end() == 0
    assert under.aborts() == {}


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (after("read_once", inside="speculate_on_vma"), "VMA_COPY"),
        (after("copy_pvma"), "VMA_COPY"),
        (after("vma_has_changed"), "PTE_MAP_LOCK_SEQ1"),
        (after("vma_has_changed", inside="pte_map_lock_speculative"), "PTE_MAP_LOCK_SEQ2"),
        (after("vma_has_changed", nth=2, inside="pte_map_lock_speculative"), None),
    ],
    ids=str,
)
def test_where_a_writer_of_the_vma_shows(under, scripted, area, point, reason):
    a = scripted.thread("A", "write", PAGE, 7)
    a.runs_until(point)
    grow = scripted.thread("B", "mmap", AREA + (16 << 12), 4096, RW, 0x32)
    grow.runs_to_end()
    assert a.runs_to_end() == 0
    assert under.aborts() == ({reason: 1} if reason else {})


@pytest.mark.parametrize(
    ("do", "arguments", "reason"),
    [
        ("write", (ELSEWHERE, 7), "UNMAPPED"),
        ("write", (AREA + PMD_SIZE, 7), "PMD"),
    ],
)
def test_what_the_locked_path_has_to_do(under, scripted, do, arguments, reason):
    under.map(AREA, 2 * PMD_SIZE >> 12)
    under.write(AREA, 1)
    scripted.thread("A", do, *arguments).runs_to_end()
    assert under.aborts() == {reason: 1}


def test_access_error_is_decided_by_the_locked_path_alone(under, scripted, area):
    assert under.call("mprotect", AREA, 16 << 12, int(Prot.READ)) == 0
    assert scripted.thread("A", "write", PAGE, 7).runs_to_end() == -EFAULT
    assert under.aborts() == {"ACCESS_ERROR": 1}


def test_the_last_reference_frees_the_vma_at_once(under, scripted, area):
    under.map(ELSEWHERE, 4)
    slot = slot_of(under, ELSEWHERE)
    vmas = under.segment.vmas
    a = scripted.thread("A", "read", ELSEWHERE)
    a.runs_until(after("get_vma"))
    assert under.call("munmap", ELSEWHERE, 4 << 12) == 0
    assert (vmas["slab_state"][slot], vmas["vm_ref_count"][slot]) == (SlabState.IN_USE, 1)
    a.runs_until(after("put_vma"))
    assert vmas["slab_state"][slot] == SlabState.FREE
    assert a.runs_to_end() == (-EFAULT, 0)


def test_a_vma_that_leaves_the_tree_is_free_without_a_grace_period(under, area):
    slot = slot_of(under, AREA)
    assert under.call("munmap", AREA, 16 << 12) == 0
    assert under.segment.vmas["slab_state"][slot] == SlabState.FREE
