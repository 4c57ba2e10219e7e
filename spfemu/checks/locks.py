# SPDX-License-Identifier: MIT
"""Every lock is free, and the sequence counts are even."""

from __future__ import annotations

import numpy as np

from spfemu.checks.state import State
from spfemu.layout import MM, RWSEM
from spfemu.mm.rwsem import RWSEM_READER_OWNED

GLOBAL_LOCKS = ("zone_lock", "vma_lock", "anon_vma_lock")


def check_locks(state: State) -> None:
    """Check spinlocks, mmap locks and mmap_seq of everything that has one."""
    segment, findings = state.segment, state.findings
    for name in GLOBAL_LOCKS:
        _check_spinlock(state, name, int(segment.system[name]))
    findings.each(
        np.flatnonzero(segment.pages["ptl"]),
        lambda i: (
            f"the page-table lock of {state.frame_slots.describe(i)} is held by "
            f"{_holder(int(segment.pages['ptl'][i]))}"
        ),
    )
    for mm in state.mms:
        _check_spinlock(
            state, f"page_table_lock of mm {mm}", int(segment.mms["page_table_lock"][mm])
        )
        _check_mmap_lock(state, mm)
        _check_mmap_seq(state, mm)


def _holder(word: int) -> str:
    return f"CPU {word - 1}"


def _check_spinlock(state: State, name: str, word: int) -> None:
    if word != 0:
        state.findings.add(f"{name} is held by {_holder(word)}")


def _check_mmap_lock(state: State, mm: int) -> None:
    """Check the rwsem; a reader's name may stay in its owner word."""
    add = state.findings.add
    at = state.mm_slots.address(mm) + MM.mmap_lock
    word = state.segment.word
    name = f"mmap_lock of mm {mm}"
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
