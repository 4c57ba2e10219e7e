# SPDX-License-Identifier: MIT
"""Every lock is free, the sequence counts are even, and the references are those of the tree."""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import Words
from spfemu.checks.state import State
from spfemu.layout import ADDRESS_SPACE, MM, RWSEM, SYSTEM, VMA
from spfemu.mm.rwsem_words import RWSEM_READER_OWNED

GLOBAL_LOCKS = (
    *("zone_lock", "vma_lock", "anon_vma_lock", "avc_lock", "mm_slots_lock"),
    *("files_lock", "notifier_slab_lock", "uffd_lock", "huge_lock"),
    *("drain_lock", "rcu_orphan_lock"),
)


def check_locks(state: State) -> None:
    """Check spinlocks, mmap locks and mmap_seq of everything that has one."""
    segment, findings = state.segment, state.findings
    for name in GLOBAL_LOCKS:
        _check_spinlock(state, name, int(segment.system[name]))
    for node in range(1, segment.geometry.nr_nodes):
        word = int(segment.words[segment.zone_word(node, 0)])
        _check_spinlock(state, f"zone_lock of node {node}", word)
    _check_rwsem(state, "mm_all_locks", segment.address["system"] + SYSTEM.mm_all_locks)
    findings.each(
        np.flatnonzero(segment.pages["ptl"]),
        lambda i: (
            f"the page-table lock of {state.frame_slots.describe(i)} is held by "
            f"{_holder(int(segment.pages['ptl'][i]))}"
        ),
    )
    for i in map(int, np.flatnonzero(segment.anon_vmas["lock"])):
        name = f"the lock of {state.anon_vma_slots.describe(i)}"
        _check_spinlock(state, name, int(segment.anon_vmas["lock"][i]))
    for i in map(int, np.flatnonzero(segment.swap_clusters["lock"])):
        _check_spinlock(state, f"swap cluster {i}", int(segment.swap_clusters["lock"][i]))
    for i in range(state.mapping_slots.count):
        at = state.mapping_slots.address(i)
        _check_rwsem(state, f"i_mmap_rwsem of file {i}", at + ADDRESS_SPACE.i_mmap_rwsem)
        _check_rwsem(state, f"i_rwsem of file {i}", at + ADDRESS_SPACE.i_rwsem)
        _check_spinlock(state, f"xa_lock of file {i}", int(segment.mappings["xa_lock"][i]))
    for i in map(int, np.flatnonzero(segment.uffds["lock"])):
        name = f"the lock of {state.uffd_slots.describe(i)}"
        _check_spinlock(state, name, int(segment.uffds["lock"][i]))
    for mm in state.mms:
        _check_spinlock(
            state, f"page_table_lock of mm {mm}", int(segment.mms["page_table_lock"][mm])
        )
        _check_rwsem(state, f"mmap_lock of mm {mm}", state.mm_slots.address(mm) + MM.mmap_lock)
        _check_mmap_seq(state, mm)


def _holder(word: int) -> str:
    return f"CPU {word - 1}"


def _check_spinlock(state: State, name: str, word: int) -> None:
    if word != 0:
        state.findings.add(f"{name} is held by {_holder(word)}")


def _check_rwsem(state: State, name: str, at: int) -> None:
    """Check the rwsem at an address; a reader's name may stay in its owner word."""
    add = state.findings.add
    word = state.segment.word
    count, owner = word(at + RWSEM.count), word(at + RWSEM.owner)
    if count != 0:
        add(f"{name} is not free: its count is {count:#x}")
    if owner != 0 and not owner & RWSEM_READER_OWNED:
        add(f"{name} still has a writing owner, {_holder(owner)}")
    if word(at + RWSEM.osq) != 0:
        add(f"{name} still has {_holder(word(at + RWSEM.osq))} in its spin queue")
    if word(at + RWSEM.wait_head) != 0 or word(at + RWSEM.wait_tail) != 0:
        add(f"{name} still has a waiter, {word(at + RWSEM.wait_head):#x}")
    _check_spinlock(state, f"wait_lock of {name}", word(at + RWSEM.wait_lock))


def _check_mmap_seq(state: State, mm: int) -> None:
    """Check both words; a kernel uses the one or the other (CONFIG_MMAP_SEQ_OWN_LINE)."""
    values = {name: int(state.segment.mms[name][mm]) for name in ("mmap_seq", "mmap_seq_own")}
    for name, value in values.items():
        if value & 1:
            state.findings.add(f"{name} of mm {mm} is odd ({value}): a writer never left")
    if all(values.values()):
        state.findings.add(f"mm {mm} counts in both mmap_seq and mmap_seq_own: {values}")
    if int(state.segment.mms["mm_seq"][mm]) & 1:
        state.findings.add(f"mm_seq of mm {mm} is odd: a change of the tree never ended")
    held = int(state.segment.mms["mm_rb_lock"][mm])
    if held != 0:
        state.findings.add(f"mm_rb_lock of mm {mm} is not free ({held:#x})")


def check_vma_locks(state: State) -> None:
    """Check what single VMAs have for the protocols that lock or count them.

    Needs `State.vmas`.  A kernel that does not use a word leaves it 0 in all of them.
    """
    vmas, slots = state.segment.vmas, state.vma_slots
    for index in np.flatnonzero(vmas["vm_lock"].any(axis=1)).tolist():
        at = slots.address(index) + VMA.vm_lock
        _check_rwsem(state, f"vm_lock of {slots.describe(index)}", at)
    state.findings.each(
        np.flatnonzero(vmas["vm_sequence"] & 1),
        lambda i: f"vm_sequence of {slots.describe(i)} is odd ({vmas['vm_sequence'][i]})",
    )
    linked = np.zeros(slots.count, np.int64)
    for mm, members in state.vmas.items():
        linked[members] = 1
        _check_attached(state, mm, members)
    _check_count(state, "fault_count", 0 * linked)
    for name in ("vm_refcnt", "vm_ref_count"):
        # one reference each, or none if this kernel does not count them
        _check_count(state, name, linked * bool(vmas[name].any()))


def _check_count(state: State, name: str, expected: Words) -> None:
    found = state.segment.vmas[name]
    state.findings.each(
        np.flatnonzero(found != expected),
        lambda i: f"{name} of {state.vma_slots.describe(i)} is {found[i]} instead of {expected[i]}",
    )


def _check_attached(state: State, mm: int, members: Words) -> None:
    """Check that the VMAs of an mm are not detached, and not locked for writing."""
    vmas, seq = state.segment.vmas[members], int(state.segment.mms["mm_lock_seq"][mm])
    state.findings.each(
        members[vmas["detached"] != 0],
        lambda i: f"mm {mm}: {state.describe_vma(i)} is still marked as detached",
    )
    state.findings.each(
        members[vmas["vm_lock_seq"] >= max(seq, 1)],  # mm_lock_seq is 0 where it is not used
        lambda i: f"mm {mm}: {state.describe_vma(i)} is still locked for writing",
    )
