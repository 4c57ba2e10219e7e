# SPDX-License-Identifier: MIT
"""Writing dirty pages back (Linux 5.12, mm/page-writeback.c, mm/rmap.c: page_mkclean).

A page that is written back is write-protected wherever it is mapped, so that the next write is
noticed and makes it dirty again.  There is no disk, so the write itself takes no time.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, PAGE, PAGE_SHIFT, PAGE_SIZE, VMA
from spfemu.mm.filemap import get_cached_page_from, set_page_dirty
from spfemu.mm.flags import PTE_ADDR_MASK, FileOps, Pg, Pte, Vm
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import put_page, virt_to_page
from spfemu.mm.page_lock import lock_page, unlock_page
from spfemu.mm.pgtable import find_pmd, pmd_bad, pte_lockptr, pte_offset, pte_present, set_pte
from spfemu.mm.rwsem import down_read, up_read
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import atomic_fetch_and, load, read_once, xchg

WRITTEN_BITS = int(Pte.RW | Pte.DIRTY)


@slowpath
def filemap_write_and_wait_range(cpu: int, mapping: int, first: int, last: int) -> None:
    """Write back the dirty pages [first, last] of a file; shared memory has nothing to write to."""
    if load(mapping + ADDRESS_SPACE.i_fop) != FileOps.GENERIC:
        return
    index, page = get_cached_page_from(cpu, mapping, first)
    while page != 0 and index <= last:
        lock_page(cpu, page)
        if read_once(page + PAGE.mapping) == mapping:
            if clear_page_dirty_for_io(cpu, mapping, page):
                count_vm_event(cpu, Event.PAGES_WRITTEN)
        unlock_page(page)
        put_page(cpu, page)
        index, page = get_cached_page_from(cpu, mapping, index + 1)
    if page != 0:
        put_page(cpu, page)


@kernel
def clear_page_dirty_for_io(cpu: int, mapping: int, page: int) -> int:
    """Make a locked page clean, in the page tables first; returns 1 if it was dirty.

    In this order a write that comes between finds the page dirty still, and one that comes later
    faults, and waits for the page's lock.
    """
    if page_mkclean(cpu, mapping, page):
        set_page_dirty(page)
    return (atomic_fetch_and(page + PAGE.flags, ~Pg.DIRTY) & Pg.DIRTY) != 0


@slowpath
def page_mkclean(cpu: int, mapping: int, page: int) -> int:
    """Write-protect a page wherever a shared mapping has it; returns 1 if one could write to it."""
    found = 0
    index = load(page + PAGE.index)
    down_read(cpu, mapping + ADDRESS_SPACE.i_mmap_rwsem)
    vma = load(mapping + ADDRESS_SPACE.i_mmap)
    while vma != 0:
        address = load(vma + VMA.vm_start) + ((index - load(vma + VMA.vm_pgoff)) << PAGE_SHIFT)
        if load(vma + VMA.vm_start) <= address < load(vma + VMA.vm_end):
            if load(vma + VMA.vm_flags) & Vm.SHARED:
                found = found | page_mkclean_one(cpu, load(vma + VMA.vm_mm), page, address)
        vma = load(vma + VMA.shared_next)
    up_read(cpu, mapping + ADDRESS_SPACE.i_mmap_rwsem)
    return found


@kernel
def page_mkclean_one(cpu: int, mm: int, page: int, address: int) -> int:
    """Write-protect the pte of `address` if it maps `page` for writing; returns 1 then.

    The TLBs are flushed before the lock is released: from then on nobody writes without a fault.
    """
    slot = find_pmd(mm, address)
    if slot == 0:
        return 0
    pmd = read_once(slot)
    if pmd_bad(pmd):
        return 0
    found = 0
    mmu_notifier_invalidate_range_start(cpu, mm, address, address + PAGE_SIZE)
    ptl = pte_lockptr(cpu, pmd)
    pte = pte_offset(pmd, address)
    spin_lock(cpu, ptl)
    entry = read_once(pte)
    if pte_present(entry) and virt_to_page(cpu, entry & PTE_ADDR_MASK) == page:
        if entry & WRITTEN_BITS:
            entry = xchg(pte, 0)
            flush_tlb_mm(cpu, mm)
            set_pte(pte, entry & ~WRITTEN_BITS)
            found = 1
    spin_unlock(ptl)
    mmu_notifier_invalidate_range_end(cpu, mm, address, address + PAGE_SIZE)
    return found
