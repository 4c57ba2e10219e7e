# SPDX-License-Identifier: MIT
"""Pmd entries that map a huge frame (Linux 5.12, mm/huge_memory.c).

Such an entry has PSE and appears by a collapse only (mm/khugepaged.py).  It changes under
page_table_lock, which is also the pmd lock; with it lies a table of ptes for the time when it is
split, which happens wherever less than all of it is concerned.  Who holds the mmap lock or the
VMA's for reading may find it split or gone meanwhile, but never a table replaced by it.

Differs in that an entry is split when a part is used and not already when VMAs end inside it
(vma_adjust_trans_huge), and in that a moved one is split first.  Faults do not make huge pages.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, GATHER, MM, PAGE, PAGE_SHIFT, WORD
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import (
    HPAGE_PMD_NR,
    PMD_SIZE,
    PTE_ADDR_MASK,
    Errno,
    FaultFlag,
    PageKind,
    Pte,
)
from spfemu.mm.huge_page_alloc import (
    huge_page_is_mine,
    huge_page_marked_shared,
    huge_page_unshare,
)
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import alloc_zeroed_page, get_page, page_address, virt_to_page
from spfemu.mm.pgtable import TABLE_BITS, huge_pte, pmd_huge, set_pte
from spfemu.mm.rss import add_mm_rss
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.tlb import flush_tlb_mm, tlb_flush_mmu, tlb_remove_page, tlb_remove_table
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add_relaxed,
    atomic_fetch_and,
    atomic_fetch_or,
    load,
    read_once,
    store,
    xchg,
)

if TYPE_CHECKING:  # the engines resolve calls by name: importing these would be circular
    from spfemu.mm.fork import page_dup_anon_rmap
    from spfemu.mm.memory import page_remove_rmap

PTE_PROT_BITS = int(Pte.PRESENT | Pte.RW | Pte.USER | Pte.NX | Pte.PROTNONE)

# The table that lies with a huge entry: a list in the PAGE of the table that has the entry.


@kernel
def pgtable_trans_huge_deposit(cpu: int, slot: int, table: int) -> None:
    """Put a table of ptes, given by its PAGE, with the entry at `slot`; under the pmd lock."""
    holder = virt_to_page(cpu, slot)
    store(table + PAGE.lru, load(holder + PAGE.mapping))
    store(holder + PAGE.mapping, table)


@kernel
def pgtable_trans_huge_withdraw(cpu: int, slot: int) -> int:
    """Take one back; under the pmd lock."""
    holder = virt_to_page(cpu, slot)
    table = load(holder + PAGE.mapping)
    vm_bug_on(table == 0, Bug.TABLE_MISSING)
    store(holder + PAGE.mapping, load(table + PAGE.lru))
    store(table + PAGE.lru, 0)
    return table


# Splitting


@kernel
def pmd_of_ptes(cpu: int, mm: int, slot: int, address: int) -> int:
    """Return the entry at `slot` as one that names a table of ptes, or 0: a huge one is split."""
    pmd = read_once(slot)
    if pmd_huge(pmd):
        split_huge_pmd(cpu, mm, slot, address)
        pmd = read_once(slot)
    return pmd


@slowpath
def split_huge_pmd(cpu: int, mm: int, slot: int, address: int) -> None:
    """Map by ptes what the entry at `slot` maps, if it is huge; no page-table lock is held."""
    start = address & -PMD_SIZE
    mmu_notifier_invalidate_range_start(cpu, mm, start, start + PMD_SIZE)
    spin_lock(cpu, mm + MM.page_table_lock)
    if pmd_huge(read_once(slot)):
        __split_huge_pmd_locked(cpu, mm, slot)
        count_vm_event(cpu, Event.THP_SPLIT_PMD)
    spin_unlock(mm + MM.page_table_lock)
    mmu_notifier_invalidate_range_end(cpu, mm, start, start + PMD_SIZE)


@kernel
def __split_huge_pmd_locked(cpu: int, mm: int, slot: int) -> None:
    """Fill the table that lies with the entry, and link it in the entry's place.

    Meanwhile the entry is not present but still huge: the hardware sets no accessed and dirty bits
    that would get lost, and nobody takes it for empty.
    """
    pmd = pmdp_invalidate(cpu, mm, slot)
    table = page_address(cpu, pgtable_trans_huge_withdraw(cpu, slot))
    for i in range(HPAGE_PMD_NR):
        store(table + i * WORD, (pmd & ~Pte.PSE) + (i << PAGE_SHIFT))
    set_pte(slot, table | TABLE_BITS)


@kernel
def pmdp_invalidate(cpu: int, mm: int, slot: int) -> int:
    """Make a huge entry not present, everywhere; returns what it was."""
    pmd = xchg(slot, read_once(slot) & ~Pte.PRESENT)
    flush_tlb_mm(cpu, mm)
    return pmd


# Faults


@kernel
def huge_pmd_fault(cpu: int, mm: int, slot: int, flags: int) -> int:
    """Handle a fault in a huge page as it is; 0 if the entry is to be split, or is not huge.

    A write to a read-only one makes it writable if nobody else has any part of it.  Source:
    huge_pmd_set_accessed, do_huge_pmd_wp_page.
    """
    spin_lock(cpu, mm + MM.page_table_lock)
    pmd = read_once(slot)
    handled = 1 if pmd_huge(pmd) and pmd & Pte.PRESENT else 0
    bits = Pte.ACCESSED
    if flags & FaultFlag.WRITE:
        bits = Pte.ACCESSED | Pte.DIRTY | Pte.RW
        if handled and (pmd & Pte.RW) == 0:
            head = virt_to_page(cpu, pmd & PTE_ADDR_MASK)
            handled = huge_page_is_mine(head)
            if handled:
                huge_page_unshare(head)
    if handled:
        atomic_fetch_or(slot, bits)
    spin_unlock(mm + MM.page_table_lock)
    return handled


@kernel
def follow_trans_huge_pmd(cpu: int, mm: int, slot: int, address: int, need: int, refs: int) -> int:
    """Take references to the page of `address` in a huge page; its PAGE, or 0.

    0 if the entry lacks a bit of `need`, or is not huge any more.
    """
    page = 0
    spin_lock(cpu, mm + MM.page_table_lock)
    pmd = read_once(slot)
    if pmd_huge(pmd) and pmd & need == need:
        page = virt_to_page(cpu, huge_pte(pmd, address) & PTE_ADDR_MASK)
        atomic_fetch_add_relaxed(page + PAGE.refcount, refs)
    spin_unlock(mm + MM.page_table_lock)
    return page


# Whole entries


@slowpath
def zap_huge_pmd(cpu: int, mm: int, slot: int) -> int:
    """Clear a huge entry into the CPU's gather; 0 if it is not huge any more.

    Its table may still be looked at by who found it before the collapse: it goes the way of tables
    that are unlinked.
    """
    gather = cpu + CPU.gather
    spin_lock(cpu, mm + MM.page_table_lock)
    if pmd_huge(read_once(slot)) == 0:
        spin_unlock(mm + MM.page_table_lock)
        return 0
    pmd = xchg(slot, 0)
    table = pgtable_trans_huge_withdraw(cpu, slot)
    spin_unlock(mm + MM.page_table_lock)
    page = virt_to_page(cpu, pmd & PTE_ADDR_MASK)
    for _ in range(HPAGE_PMD_NR):
        store(gather + GATHER.need_flush, 1)
        page_remove_rmap(page)
        if tlb_remove_page(cpu, page):
            tlb_flush_mmu(cpu)
        page += PAGE.SIZE
    tlb_remove_table(cpu, table)
    add_mm_rss(cpu, mm, -HPAGE_PMD_NR)
    return 1


@slowpath
def change_huge_pmd(cpu: int, mm: int, slot: int, prot: int, writable: int) -> int:
    """Give a huge entry another protection; 0 if it is not huge any more.

    `writable` is added if a write fault would do so, and no more.  The caller flushes.
    """
    spin_lock(cpu, mm + MM.page_table_lock)
    pmd = read_once(slot)
    if pmd_huge(pmd):
        # not present first, so that accessed and dirty bits set meanwhile are kept
        pmd = (xchg(slot, pmd & ~Pte.PRESENT) & ~PTE_PROT_BITS) | prot
        if writable != 0 and can_change_pmd_writable(virt_to_page(cpu, pmd & PTE_ADDR_MASK)):
            pmd = pmd | writable
        set_pte(slot, pmd)
    spin_unlock(mm + MM.page_table_lock)
    return pmd_huge(pmd) != 0


@kernel
def can_change_pmd_writable(head: int) -> int:
    """Tell whether a write would make the entry writable with nothing else to do (as for ptes).

    Not what a fork has shared: only a write fault finds that it is not any more.
    """
    return huge_page_marked_shared(head) == 0 and huge_page_is_mine(head)


@slowpath
def copy_huge_pmd(cpu: int, mm: int, slot: int, src_mm: int, src_slot: int) -> int:
    """Let `mm` map at `slot` what a huge entry of its parent's maps, both read-only; 0 or -ENOMEM.

    Needs both mmap locks for writing, so the parent's entry stays huge.
    """
    table = alloc_zeroed_page(cpu, PageKind.TABLE)
    if table == 0:
        return -Errno.ENOMEM
    store(table + PAGE.ptl, 0)
    store(table + PAGE.private, mm)
    atomic_fetch_add_relaxed(mm + MM.pgtables, 1)
    spin_lock(cpu, mm + MM.page_table_lock)
    spin_lock(cpu, src_mm + MM.page_table_lock)
    pmd = atomic_fetch_and(src_slot, ~Pte.RW) & ~Pte.RW
    head = virt_to_page(cpu, pmd & PTE_ADDR_MASK)
    for i in range(HPAGE_PMD_NR):
        get_page(head + i * PAGE.SIZE)
        page_dup_anon_rmap(head + i * PAGE.SIZE)
    pgtable_trans_huge_deposit(cpu, slot, table)
    set_pte(slot, pmd & ~Pte.ACCESSED)
    spin_unlock(src_mm + MM.page_table_lock)
    spin_unlock(mm + MM.page_table_lock)
    atomic_fetch_add_relaxed(mm + MM.rss_anon, HPAGE_PMD_NR)
    return 0
