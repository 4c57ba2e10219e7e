# SPDX-License-Identifier: MIT
"""Collapse: the pages of 2 MiB become one huge page (Linux 5.12, mm/khugepaged.c).

A range is looked at under the mmap lock for reading; then, under that for writing, its pmd entry is
cleared and flushed, its pages are copied to a huge frame, and an entry that maps this takes the
place of the table, which is kept for the time when the entry is split.  mmap_seq is odd meanwhile,
and the entry empty: a speculative fault that has found the table before is stopped by either.

Differs in that pages out of memory are not brought in: an entry that is not present, also a
NUMA hint, ends the attempt.
"""

from enum import IntEnum
from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE, PAGE_SHIFT, SYSTEM, VMA, WORD
from spfemu.mm.config import (
    CONFIG_KHUGEPAGED_MAX_PTES_NONE,
    CONFIG_KHUGEPAGED_MAX_PTES_SHARED,
    CONFIG_TRANSPARENT_HUGEPAGE_ALWAYS,
)
from spfemu.mm.flags import (
    HPAGE_PMD_NR,
    PMD_SIZE,
    PTE_ADDR_MASK,
    Errno,
    PageKind,
    Pg,
    Pte,
    Vm,
)
from spfemu.mm.huge_memory import pgtable_trans_huge_deposit
from spfemu.mm.huge_page_alloc import alloc_huge_page, free_huge_page
from spfemu.mm.irq import irq_poll
from spfemu.mm.memory import page_add_new_anon_rmap, page_remove_rmap
from spfemu.mm.mm_struct import mmget_not_zero
from spfemu.mm.mmap_lock import (
    mmap_read_lock,
    mmap_read_unlock,
    mmap_write_lock,
    mmap_write_unlock,
)
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import page_address, page_kind, put_page, virt_to_page
from spfemu.mm.pgtable import find_pmd, pmd_huge, pte_lockptr, set_pte
from spfemu.mm.rmap import anon_vma_lock, anon_vma_unlock
from spfemu.mm.rss import add_mm_rss
from spfemu.mm.sched import cond_resched, cpu_sleep
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.vma import find_vma
from spfemu.mm.vma_write import vm_write_begin, vm_write_end, vma_start_write
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import clear_page, copy_page, load, read_once, smp_load_acquire, store, xchg

if TYPE_CHECKING:  # the engines resolve calls by name: importing it would be circular
    from spfemu.mm.fork import mmput

KHUGEPAGED_RANGES_TO_SCAN = 8
"""Ranges of 2 MiB looked at between two sleeps (Linux: pages_to_scan)."""
KHUGEPAGED_SLEEP_NS = 1_000_000
"""Linux: scan_sleep_millisecs, 10,000."""
ACCESSED = int(Pte.ACCESSED)
WRITABLE = int(Pte.RW | Pte.DIRTY | Pte.ACCESSED)


class Scan(IntEnum):
    """How an attempt ended (enum scan_result)."""

    SUCCEED = 0
    PMD_NULL = 1
    PMD_MAPPED = 2
    EXCEED_NONE_PTE = 3
    EXCEED_SHARED_PTE = 4
    PTE_NON_PRESENT = 5
    PTE_UFFD_WP = 6
    PAGE_RO = 7
    LACK_REFERENCED_PAGE = 8
    PAGE_COUNT = 9
    PAGE_LOCK = 10
    PAGE_ANON = 11
    VMA_CHECK = 12
    ALLOC_HUGE_PAGE_FAIL = 13


# What may be collapsed


@kernel
def hugepage_vma_check(vma: int, start: int, force: int) -> int:
    """Tell whether [start, start + 2 MiB) is a part of `vma` that may be one huge page."""
    if vma == 0 or load(vma + VMA.vm_start) > start or load(vma + VMA.vm_end) < start + PMD_SIZE:
        return 0
    return thp_vma_allowable(vma, force)


@kernel
def thp_vma_allowable(vma: int, force: int) -> int:
    """Tell whether there may be huge pages in `vma`: anonymous memory with pages of its own.

    `force`: the process asks for it, whatever the setting (MADV_COLLAPSE).
    """
    if load(vma + VMA.vm_ops) != 0 or load(vma + VMA.anon_vma) == 0:
        return 0
    vm_flags = load(vma + VMA.vm_flags)
    if vm_flags & Vm.NOHUGEPAGE:
        return 0
    return force | CONFIG_TRANSPARENT_HUGEPAGE_ALWAYS | (vm_flags & Vm.HUGEPAGE)


@kernel
def collapse_check_ptes(cpu: int, vma: int, table: int, force: int) -> tuple[int, int]:
    """Tell whether the ptes of a table allow a collapse; (Scan, how many of them map no page).

    Needs the table's lock.  Source: khugepaged_scan_pmd and __collapse_huge_page_isolate, which
    ask the same.
    """
    none = 0
    shared = 0
    writable = 0
    referenced = 0
    for i in range(HPAGE_PMD_NR):
        entry = read_once(table + i * WORD)
        if entry == 0 or entry & Pte.SPECIAL:
            none += 1
            continue
        result = collapse_check_page(cpu, entry)
        if result != Scan.SUCCEED:
            return result, 0
        shared += load(virt_to_page(cpu, entry & PTE_ADDR_MASK) + PAGE.mapcount) > 1
        writable = writable | (entry & Pte.RW)
        referenced = referenced | (entry & Pte.ACCESSED)
    if none != 0 and load(vma + VMA.vm_flags) & (Vm.UFFD_MISSING | Vm.UFFD_WP):
        return Scan.EXCEED_NONE_PTE, 0
    if force:
        return Scan.SUCCEED, none
    return collapse_limits(none, shared, writable, referenced), none


@kernel
def collapse_check_page(cpu: int, entry: int) -> int:
    """Tell whether what an entry maps may be copied: a Scan.

    Somebody who has a reference beside those of ptes may be about to use the page.
    """
    if (entry & Pte.PRESENT) == 0:
        return Scan.PTE_NON_PRESENT
    if entry & Pte.UFFD_WP:
        return Scan.PTE_UFFD_WP
    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
    if page_kind(page) != PageKind.ANON:
        return Scan.PAGE_ANON
    if load(page + PAGE.flags) & Pg.LOCKED:
        return Scan.PAGE_LOCK
    # pairs with the update in put_page: what others wrote before they let go is copied
    if smp_load_acquire(page + PAGE.refcount) != load(page + PAGE.mapcount):
        return Scan.PAGE_COUNT
    return Scan.SUCCEED


@kernel
def collapse_limits(none: int, shared: int, writable: int, referenced: int) -> int:
    """Tell whether a collapse that nobody asked for is worth its while: a Scan."""
    if none > CONFIG_KHUGEPAGED_MAX_PTES_NONE:
        return Scan.EXCEED_NONE_PTE
    if shared > CONFIG_KHUGEPAGED_MAX_PTES_SHARED:
        return Scan.EXCEED_SHARED_PTE
    if writable == 0:
        return Scan.PAGE_RO
    return Scan.SUCCEED if referenced else Scan.LACK_REFERENCED_PAGE


@kernel
def collapse_find_pmd(mm: int, vma: int, start: int, force: int) -> tuple[int, int]:
    """Find the entry of a table of ptes that may be collapsed; (Scan, its address).

    Source: hugepage_vma_revalidate, mm_find_pmd.
    """
    if hugepage_vma_check(vma, start, force) == 0:
        return Scan.VMA_CHECK, 0
    slot = find_pmd(mm, start)
    if slot == 0 or read_once(slot) == 0:
        return Scan.PMD_NULL, 0
    if pmd_huge(read_once(slot)):
        return Scan.PMD_MAPPED, 0
    return Scan.SUCCEED, slot


# Collapsing


@slowpath
def hpage_collapse(cpu: int, mm: int, start: int, force: int) -> int:
    """Look at [start, start + 2 MiB) of `mm` and collapse it if that may be; returns a Scan.

    Takes the mmap lock itself.
    """
    count_vm_event(cpu, Event.KHUGEPAGED_SCAN)
    mmap_read_lock(cpu, mm)
    vma = find_vma(cpu, mm, start)
    result, slot = collapse_find_pmd(mm, vma, start, force)
    if result == Scan.SUCCEED:
        pmd = read_once(slot)
        spin_lock(cpu, pte_lockptr(cpu, pmd))
        result, _ = collapse_check_ptes(cpu, vma, pmd & PTE_ADDR_MASK, force)
        spin_unlock(pte_lockptr(cpu, pmd))
    mmap_read_unlock(cpu, mm)
    if result == Scan.SUCCEED:
        result = collapse_huge_page(cpu, mm, start, force)
    return result


@slowpath
def collapse_huge_page(cpu: int, mm: int, start: int, force: int) -> int:
    """Collapse a range that looked fit for it a moment ago; returns a Scan.

    The mmap lock was released for the allocation, so everything is looked at again.
    """
    head = alloc_huge_page(cpu)
    if head == 0:
        count_vm_event(cpu, Event.THP_COLLAPSE_ALLOC_FAILED)
        return Scan.ALLOC_HUGE_PAGE_FAIL
    count_vm_event(cpu, Event.THP_COLLAPSE_ALLOC)
    mmap_write_lock(cpu, mm)
    vma = find_vma(cpu, mm, start)
    result, slot = collapse_find_pmd(mm, vma, start, force)
    if result == Scan.SUCCEED:
        vma_start_write(cpu, vma)
        vm_write_begin(vma)
        anon_vma_lock(cpu, load(vma + VMA.anon_vma))
        result = collapse_table(cpu, vma, slot, start, head, force)
        anon_vma_unlock(load(vma + VMA.anon_vma))
        vm_write_end(vma)
    mmap_write_unlock(cpu, mm)
    count_vm_event(cpu, Event.THP_COLLAPSE if result == Scan.SUCCEED else Event.THP_COLLAPSE_FAILED)
    if result != Scan.SUCCEED:
        free_huge_page(cpu, head)
    return result


@kernel
def collapse_table(cpu: int, vma: int, slot: int, start: int, head: int, force: int) -> int:
    """Withdraw the table that the entry at `slot` names, and map a huge frame instead; a Scan.

    Needs the mmap lock and the VMA's for writing, and the anon_vma's.  With the entry cleared and
    all TLBs flushed, only those use the table who have its lock: once that has been had, nobody.
    """
    mm = load(vma + VMA.vm_mm)
    mmu_notifier_invalidate_range_start(cpu, mm, start, start + PMD_SIZE)
    pmd = pmdp_collapse_flush(cpu, mm, slot)
    mmu_notifier_invalidate_range_end(cpu, mm, start, start + PMD_SIZE)
    table = pmd & PTE_ADDR_MASK
    spin_lock(cpu, pte_lockptr(cpu, pmd))
    result, none = collapse_check_ptes(cpu, vma, table, force)
    spin_unlock(pte_lockptr(cpu, pmd))
    if result != Scan.SUCCEED:
        spin_lock(cpu, mm + MM.page_table_lock)
        set_pte(slot, pmd)
        spin_unlock(mm + MM.page_table_lock)
        return result
    collapse_copy_ptes(cpu, table, head)
    for i in range(HPAGE_PMD_NR):
        page_add_new_anon_rmap(head + i * PAGE.SIZE, vma, start + (i << PAGE_SHIFT))
    rights = WRITABLE if load(vma + VMA.vm_flags) & Vm.WRITE else ACCESSED
    entry = page_address(cpu, head) | load(vma + VMA.vm_page_prot) | rights | Pte.PSE
    spin_lock(cpu, mm + MM.page_table_lock)
    pgtable_trans_huge_deposit(cpu, slot, virt_to_page(cpu, table))
    # whoever finds the entry finds the frame filled
    set_pte(slot, entry)
    spin_unlock(mm + MM.page_table_lock)
    add_mm_rss(cpu, mm, none)
    return result


@kernel
def pmdp_collapse_flush(cpu: int, mm: int, slot: int) -> int:
    """Clear the entry of a table of ptes and flush; returns what it was.

    Walkers with interrupts off have ended when the flush has; those under RCU look at the entry or
    at mmap_seq again before they use what they have found.
    """
    spin_lock(cpu, mm + MM.page_table_lock)
    pmd = xchg(slot, 0)
    flush_tlb_mm(cpu, mm)
    spin_unlock(mm + MM.page_table_lock)
    return pmd


@kernel
def collapse_copy_ptes(cpu: int, table: int, head: int) -> None:
    """Move the contents of all pages to the huge frame, clear the ptes, let the pages go."""
    for i in range(HPAGE_PMD_NR):
        irq_poll(cpu)
        pte = table + i * WORD
        entry = read_once(pte)
        frame = page_address(cpu, head) + (i << PAGE_SHIFT)
        store(pte, 0)
        if entry == 0 or entry & Pte.SPECIAL:
            clear_page(frame)
        else:
            page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
            copy_page(frame, page_address(cpu, page))
            page_remove_rmap(page)
            put_page(cpu, page)


# For processes that ask for it.


@slowpath
def madvise_collapse(cpu: int, mm: int, start: int, end: int) -> int:
    """Collapse all of [start, end) that huge pages fit in; 0 or a negative errno.

    -ENOMEM for holes comes after the rest is done.  Source: Linux 6.1.
    """
    result = 0
    while start < end:
        mmap_read_lock(cpu, mm)
        vma = find_vma(cpu, mm, start)
        stop = end
        fits = 0
        if vma != 0:
            first = load(vma + VMA.vm_start)
            result = result if first <= start else -Errno.ENOMEM
            start = first if first > start else start
            stop = load(vma + VMA.vm_end) if load(vma + VMA.vm_end) < end else end
            fits = thp_vma_allowable(vma, 1)
        mmap_read_unlock(cpu, mm)
        if vma == 0 or start >= end:
            return -Errno.ENOMEM
        error = madvise_collapse_range(cpu, mm, start, stop) if fits else -Errno.EINVAL
        if error != 0:
            return error
        start = stop
    return result


@kernel
def madvise_collapse_range(cpu: int, mm: int, start: int, end: int) -> int:
    """Collapse what lies in a part of one VMA; 0 or the errno of the last failure."""
    error = 0
    address = (start + PMD_SIZE - 1) & -PMD_SIZE
    while address + PMD_SIZE <= end:
        result = hpage_collapse(cpu, mm, address, 1)
        if result == Scan.ALLOC_HUGE_PAGE_FAIL:
            return -Errno.ENOMEM
        if result == Scan.PAGE_COUNT or result == Scan.PAGE_LOCK:
            error = -Errno.EAGAIN
        elif result != Scan.SUCCEED and result != Scan.PMD_MAPPED:
            error = -Errno.EINVAL
        address += PMD_SIZE
    return error


# The kernel thread, the only one that touches its place in the address spaces.


@kernel
def khugepaged_op(cpu: int) -> int:
    """Look at a few ranges of all processes, then sleep; 0 (khugepaged_do_scan).

    The sleep is short beside the kernel's ten seconds: samples are short too.
    """
    system = load(cpu + CPU.system)
    for _ in range(KHUGEPAGED_RANGES_TO_SCAN):
        khugepaged_scan_mm_slot(cpu, system)
        cond_resched(cpu)
    cpu_sleep(cpu, system + SYSTEM.stop, 0, KHUGEPAGED_SLEEP_NS)
    return 0


@slowpath
def khugepaged_scan_mm_slot(cpu: int, system: int) -> None:
    """Collapse the next range that may be, or go on to the next process at the end of one.

    The reference keeps the process's mappings meanwhile.  The kernel keeps the mm_struct only, and
    lets the end of a process wait for the mmap lock.
    """
    index = load(system + SYSTEM.khugepaged_mm)
    mm = load(system + SYSTEM.mms) + index * MM.SIZE
    start = 0
    if mmget_not_zero(mm):
        start = khugepaged_next_range(cpu, mm, load(system + SYSTEM.khugepaged_address))
        if start != 0:
            hpage_collapse(cpu, mm, start, 0)
        mmput(cpu, mm)
    if start != 0:
        store(system + SYSTEM.khugepaged_address, start + PMD_SIZE)
        return
    count = load(system + SYSTEM.nr_mms) + load(system + SYSTEM.nr_spare_mms)
    store(system + SYSTEM.khugepaged_mm, index + 1 if index + 1 < count else 0)
    store(system + SYSTEM.khugepaged_address, 0)


@kernel
def khugepaged_next_range(cpu: int, mm: int, address: int) -> int:
    """Find the first range from `address` on that may be one huge page; 0 if there is none."""
    mmap_read_lock(cpu, mm)
    found = 0
    vma = find_vma(cpu, mm, address)
    while vma != 0 and found == 0:
        first = load(vma + VMA.vm_start)
        first = first if first > address else address
        first = (first + PMD_SIZE - 1) & -PMD_SIZE
        if hugepage_vma_check(vma, first, 0):
            found = first
        vma = load(vma + VMA.vm_next)
    mmap_read_unlock(cpu, mm)
    return found
