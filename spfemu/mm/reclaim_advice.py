# SPDX-License-Identifier: MIT
"""Advice on what to reclaim first (Linux 6.1, mm/madvise.c): COLD, PAGEOUT, FREE, WILLNEED.

All of it is for a part of a private anonymous VMA, under the mmap lock for reading.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE, PAGE_SHIFT, RECLAIM, SWAP_CLUSTER_MAX, VMA, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, Madv, PageKind, Pg, Pte
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import get_page, page_kind, put_page, virt_to_page
from spfemu.mm.page_lock import trylock_page, unlock_page
from spfemu.mm.pgtable import pmd_bad, pte_lockptr, pte_offset, pte_present, set_pte
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.swap_fault import read_swap_cache
from spfemu.mm.swap_state import (
    page_swapcache,
    swap_slot_cached,
    try_to_free_swap,
)
from spfemu.mm.swapops import is_swap_pte, pte_to_swp_entry
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.vmscan import isolate_page, shrink_page_list
from spfemu.mm.vmstat import count_vm_event
from spfemu.mm.zap import find_pmd_range, zap_swap_pte
from spfemu.primitives import atomic_fetch_and, atomic_fetch_or, load, read_once, xchg


@kernel
def madvise_reclaim(cpu: int, vma: int, start: int, end: int, advice: int) -> None:
    """Follow the advice in [start, end), one page table after the other."""
    mm = load(vma + VMA.vm_mm)
    if advice == Madv.FREE:
        mmu_notifier_invalidate_range_start(cpu, mm, start, end)
    address = start
    while address < end:
        slot, next_ = find_pmd_range(mm, address, end)
        if slot != 0:
            pmd = read_once(slot)
            if pmd_bad(pmd) == 0:
                madvise_pte_range(cpu, mm, pmd, address, next_, advice)
        address = next_
    if advice == Madv.FREE:
        mmu_notifier_invalidate_range_end(cpu, mm, start, end)


@kernel
def madvise_pte_range(cpu: int, mm: int, pmd: int, start: int, end: int, advice: int) -> None:
    """Follow the advice in what one page table maps."""
    if advice == Madv.WILLNEED:
        swapin_pte_range(cpu, pmd, start, end)
    elif advice == Madv.FREE:
        madvise_free_pte_range(cpu, mm, pmd, start, end)
    else:
        address = start
        while address < end:
            address = madvise_cold_pte_range(cpu, pmd, address, end, advice)
            shrink_page_list(cpu, 1)


@kernel
def madvise_cold_pte_range(cpu: int, pmd: int, start: int, end: int, advice: int) -> int:
    """Take the accessed bits of pages that nobody else maps; collect them with MADV_PAGEOUT.

    Returns where it ended: a list of them is full.  Source: madvise_cold_or_pageout_pte_range.
    """
    ptl = pte_lockptr(cpu, pmd)
    pte = pte_offset(pmd, start)
    address = start
    spin_lock(cpu, ptl)
    while address < end and load(cpu + CPU.reclaim + RECLAIM.nr_pages) < SWAP_CLUSTER_MAX:
        page = private_page(cpu, read_once(pte))
        if page != 0:
            atomic_fetch_and(pte, ~Pte.ACCESSED)
            if advice == Madv.PAGEOUT:
                get_page(page)
                isolate_page(cpu, page)
        pte += WORD
        address += 1 << PAGE_SHIFT
    spin_unlock(ptl)
    return address


@kernel
def private_page(cpu: int, entry: int) -> int:
    """Return the anonymous page that a pte maps if no other pte does, else 0."""
    if pte_present(entry) == 0 or entry & Pte.SPECIAL:
        return 0
    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
    if page_kind(page) != PageKind.ANON or load(page + PAGE.mapping) == 0:
        return 0
    return page if read_once(page + PAGE.mapcount) == 1 else 0


@kernel
def madvise_free_pte_range(cpu: int, mm: int, pmd: int, start: int, end: int) -> None:
    """Give up what is in the pages: those that are swapped at once, others when reclaim comes.

    TLBs are flushed before the page-table lock is released, so a page that is written to from then
    on is seen to be dirty.  Source: madvise_free_pte_range.
    """
    ptl = pte_lockptr(cpu, pmd)
    pte = pte_offset(pmd, start)
    address = start
    cleaned = 0
    spin_lock(cpu, ptl)
    while address < end:
        entry = read_once(pte)
        page = private_page(cpu, entry)
        if page != 0:
            cleaned += lazyfree_pte(cpu, pte, page)
        elif is_swap_pte(entry):
            set_pte(pte, 0)
            zap_swap_pte(cpu, mm, entry)
        pte += WORD
        address += 1 << PAGE_SHIFT
    if cleaned != 0:
        flush_tlb_mm(cpu, mm)
        mmu_notifier_invalidate_range(cpu, mm, start, end)
    spin_unlock(ptl)


@kernel
def lazyfree_pte(cpu: int, pte: int, page: int) -> int:
    """Mark one page as given up and its pte as clean; returns 1 if the pte has changed.

    A page whose lock is taken, or that others have an entry for, is left as it is.
    """
    if trylock_page(page) == 0:
        return 0
    kept = page_swapcache(page) and try_to_free_swap(cpu, page) == 0
    if kept == 0:
        atomic_fetch_and(page + PAGE.flags, ~Pg.DIRTY)
        atomic_fetch_or(page + PAGE.flags, Pg.LAZYFREE)
        count_vm_event(cpu, Event.PGLAZYFREE)
        # exchanged for 0 first, so that bits which the hardware sets meanwhile are not lost
        entry = xchg(pte, 0)
        set_pte(pte, entry & ~(Pte.DIRTY | Pte.ACCESSED))
    unlock_page(page)
    return kept == 0


@slowpath
def swapin_pte_range(cpu: int, pmd: int, start: int, end: int) -> None:
    """Read what is swapped into the swap cache, as long as there are frames.

    Source: swapin_walk_pmd_entry.
    """
    pte = pte_offset(pmd, start)
    address = start
    while address < end:
        entry = read_once(pte)
        if is_swap_pte(entry):
            swap = pte_to_swp_entry(entry)
            if swap_slot_cached(cpu, swap) == 0:
                page = read_swap_cache(cpu, swap)
                if page < 0:
                    return
                if page != 0:
                    count_vm_event(cpu, Event.SWAP_RA)
                    put_page(cpu, page)
        pte += WORD
        address += 1 << PAGE_SHIFT
