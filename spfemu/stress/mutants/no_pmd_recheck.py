# SPDX-License-Identifier: MIT
"""A collapse leaves mmap_seq alone, and the gate does not look at the pmd again.

M10: retract_page_tables and MADV_COLLAPSE of files withdraw tables without the mmap lock for
writing. There only the pmd tells.

A fault maps its page in a table that has been withdrawn.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import MM, VMA, VMF
from spfemu.mm.file_fault import speculation_holds
from spfemu.mm.huge_page_alloc import alloc_huge_page, free_huge_page
from spfemu.mm.khugepaged import Scan, collapse_find_pmd, collapse_table
from spfemu.mm.pgtable import pte_lockptr, pte_offset
from spfemu.mm.rmap import anon_vma_lock, anon_vma_unlock
from spfemu.mm.rwsem import down_write, up_write
from spfemu.mm.spinlock import spin_trylock, spin_unlock
from spfemu.mm.vma import find_vma
from spfemu.primitives import load, store

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "fault_beside_a_collapse"
ID = "M10"


@kernel
def collapse_huge_page(cpu: int, mm: int, start: int, force: int) -> int:
    """Lock without entering the write section."""
    head = alloc_huge_page(cpu)
    if head == 0:
        return Scan.ALLOC_HUGE_PAGE_FAIL
    down_write(cpu, mm + MM.mmap_lock)
    vma = find_vma(cpu, mm, start)
    result, slot = collapse_find_pmd(mm, vma, start, force)
    if result == Scan.SUCCEED:
        anon_vma_lock(cpu, load(vma + VMA.anon_vma))
        result = collapse_table(cpu, vma, slot, start, head, force)
        anon_vma_unlock(load(vma + VMA.anon_vma))
    up_write(cpu, mm + MM.mmap_lock)
    if result != Scan.SUCCEED:
        free_huge_page(cpu, head)
    return result


@kernel
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    """Check mmap_seq, only."""
    pmd = load(vmf + VMF.orig_pmd)
    ptl = pte_lockptr(cpu, pmd)
    if spin_trylock(cpu, ptl) == 0:
        return 0
    if speculation_holds(cpu, vmf, Event.SPF_ABORT_PTE_MAP_LOCK_SEQ2) == 0:
        spin_unlock(ptl)
        return 0
    store(vmf + VMF.pte, pte_offset(pmd, load(vmf + VMF.address)))
    store(vmf + VMF.ptl, ptl)
    return 1
