# SPDX-License-Identifier: MIT
"""Taking mappings away: zap, freeing of page tables, change of protection.

Entries are cleared under the page-table lock, the links to tables without any (Linux 5.12,
mm/memory.c: unmap_page_range and free_pgtables; mm/mprotect.c: change_protection).  Between the
two a new entry would be lost: whoever installs one has to know that no unmapper is at work.
"""

from enum import IntFlag

from spfemu.kernel import kernel
from spfemu.layout import (
    CPU,
    GATHER,
    GATHER_SHARED,
    MM,
    PAGE,
    PAGE_SHIFT,
    PAGE_SIZE,
    VMA,
    WORD,
)
from spfemu.mm.config import CONFIG_LINUX_VERSION, CONFIG_NUMA
from spfemu.mm.filemap import set_page_dirty
from spfemu.mm.flags import (
    PGDIR_SIZE,
    PMD_SIZE,
    PTE_ADDR_MASK,
    PUD_SIZE,
    PageKind,
    Pg,
    Pte,
    Vm,
)
from spfemu.mm.huge_memory import (
    PTE_PROT_BITS,
    change_huge_pmd,
    pmd_of_ptes,
    zap_huge_pmd,
)
from spfemu.mm.i_mmap import unlink_file_vmas
from spfemu.mm.memory import page_remove_rmap
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import page_kind, virt_to_page
from spfemu.mm.pgtable import (
    find_pmd,
    pgd_offset,
    pmd_huge,
    pte_lockptr,
    pte_offset,
    pte_present,
    pud_offset,
    set_pte,
)
from spfemu.mm.rmap import unlink_anon_vma_list
from spfemu.mm.rss import add_mm_file_rss, add_mm_rss, sync_mm_rss
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.swap_state import free_swap_and_cache
from spfemu.mm.swapops import is_swap_pte, pte_to_swp_entry
from spfemu.mm.tlb import (
    flush_tlb_mm,
    tlb_finish_mmu,
    tlb_flush_mmu,
    tlb_gather_mmu,
    tlb_remove_page,
    tlb_remove_table,
)
from spfemu.mm.versions import MPROTECT_MAKES_WRITABLE
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    load,
    read_once,
    store,
    write_once,
    xchg,
)


class MmCp(IntFlag):
    """MM_CP_*: what else than the VMA's protection entries get (include/linux/mm.h)."""

    PROT_NUMA = 2
    UFFD_WP = 4
    UFFD_WP_RESOLVE = 8


UFFD_CHANGES = int(MmCp.UFFD_WP | MmCp.UFFD_WP_RESOLVE)


@kernel
def pmd_addr_end(address: int, end: int) -> int:
    """End of the part of [address, end) that one pte table maps."""
    boundary = (address + PMD_SIZE) & -PMD_SIZE
    return boundary if boundary < end else end


@kernel
def find_pmd_range(mm: int, address: int, end: int) -> tuple[int, int]:
    """Find the pmd entry of `address`: (where it is, the end of what it maps of [address, end)).

    (0, where to go on) if there is nothing below the pud entry.
    """
    slot = find_pmd(mm, address)
    if slot == 0:
        return 0, (address + PUD_SIZE) & -PUD_SIZE
    return slot, pmd_addr_end(address, end)


@kernel
def unmap_region(cpu: int, mm: int, vma: int, prev_end: int, next_start: int) -> None:
    """Zap the detached VMAs, flush, free their frames and page tables.

    `vma` is the first of the list linked by vm_next; `prev_end` and `next_start` bound the hole
    they leave (0: no VMA below, resp. above), which decides what tables can go.  Needs the mmap
    lock in any mode.  Source: mm/mmap.c: unmap_region.
    """
    tlb_gather_mmu(cpu, mm)
    first = vma
    start = load(vma + VMA.vm_start)
    end = start
    while vma != 0:
        end = load(vma + VMA.vm_end)
        mmu_notifier_invalidate_range_start(cpu, mm, load(vma + VMA.vm_start), end)
        unmap_page_range(cpu, mm, load(vma + VMA.vm_start), end)
        mmu_notifier_invalidate_range_end(cpu, mm, load(vma + VMA.vm_start), end)
        vma = load(vma + VMA.vm_next)
    # who comes from a page or a file must not walk tables that are being freed
    unlink_anon_vma_list(cpu, first)
    unlink_file_vmas(cpu, first)
    free_pgtables(cpu, mm, start, end, prev_end, next_start)
    tlb_finish_mmu(cpu)
    sync_mm_rss(cpu)


@kernel
def zap_page_range(cpu: int, vma: int, start: int, end: int) -> None:
    """Zap part of a live VMA, keeping the page tables; the mmap lock is held in any mode."""
    zap_page_range_single(cpu, vma, start, end, 0)


@kernel
def zap_page_range_single(cpu: int, vma: int, start: int, end: int, file_only: int) -> None:
    """Do so; with `file_only` leave private copies of a file's pages alone.

    Who holds the i_mmap_rwsem of its file may do this to a VMA of any process.
    """
    mm = load(vma + VMA.vm_mm)
    tlb_gather_mmu(cpu, mm)
    store(cpu + CPU.gather + GATHER.file_only, file_only)
    mmu_notifier_invalidate_range_start(cpu, mm, start, end)
    unmap_page_range(cpu, mm, start, end)
    mmu_notifier_invalidate_range_end(cpu, mm, start, end)
    tlb_finish_mmu(cpu)
    sync_mm_rss(cpu)


@kernel
def unmap_page_range(cpu: int, mm: int, start: int, end: int) -> None:
    """Clear all entries of [start, end) into the CPU's gather."""
    address = start
    while address < end:
        slot, next_ = find_pmd_range(mm, address, end)
        if slot != 0:
            whole = pmd_huge(read_once(slot)) != 0 and next_ - address == PMD_SIZE
            if whole == 0 or zap_huge_pmd(cpu, mm, slot) == 0:
                pmd = pmd_of_ptes(cpu, mm, slot, address)
                if pmd != 0:
                    zap_pte_range(cpu, pmd, address, next_)
        address = next_


@kernel
def zap_pte_range(cpu: int, pmd: int, start: int, end: int) -> None:
    """Clear the entries of one table under its lock; flush in between if the gather gets full."""
    pte = pte_offset(pmd, start)
    last = pte + ((end - start) >> PAGE_SHIFT) * WORD
    while pte < last:
        pte = zap_ptes(cpu, pte_lockptr(cpu, pmd), pte, last)
        if load(cpu + CPU.gather + GATHER.nr_shared) == GATHER_SHARED:
            tlb_flush_mmu(cpu)


@kernel
def zap_ptes(cpu: int, ptl: int, pte: int, last: int) -> int:
    """Clear entries from `pte` up to `last` or until the gather is full; returns where it ended.

    The exchange keeps accessed and dirty bits that the hardware may set meanwhile.
    """
    gather = cpu + CPU.gather
    file_only = load(gather + GATHER.file_only)
    removed = 0
    full = 0
    spin_lock(cpu, ptl)
    while pte < last and full == 0:
        entry = read_once(pte)
        if entry != 0 and (file_only == 0 or maps_file_page(cpu, entry)):
            entry = xchg(pte, 0)
            if pte_present(entry):
                store(gather + GATHER.need_flush, 1)
                if (entry & Pte.SPECIAL) == 0:
                    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
                    removed += 1
                    if page_kind(page) == PageKind.FILE:
                        removed -= 1
                        zap_file_page(cpu, load(gather + GATHER.mm), page, entry)
                    page_remove_rmap(page)
                    full = tlb_remove_page(cpu, page)
            else:
                zap_swap_pte(cpu, load(gather + GATHER.mm), entry)
        pte += WORD
    spin_unlock(ptl)
    add_mm_rss(cpu, load(gather + GATHER.mm), -removed)
    return pte


@kernel
def maps_file_page(cpu: int, entry: int) -> int:
    """Tell whether an entry maps a page of a file, not a private copy (zap_skip_check_mapping)."""
    if pte_present(entry) == 0 or entry & Pte.SPECIAL:
        return 0
    return page_kind(virt_to_page(cpu, entry & PTE_ADDR_MASK)) == PageKind.FILE


@kernel
def zap_file_page(cpu: int, mm: int, page: int, entry: int) -> None:
    """Count one mapping less of a file's page; what was written through it makes the page dirty."""
    if entry & Pte.DIRTY:
        set_page_dirty(page)
    add_mm_file_rss(cpu, mm, page, -1)


@kernel
def zap_swap_pte(cpu: int, mm: int, entry: int) -> None:
    """Drop what a pte that maps nothing held; the page-table lock is held."""
    if is_swap_pte(entry):
        atomic_fetch_add_relaxed(mm + MM.swap_ents, -1)
        free_swap_and_cache(cpu, pte_to_swp_entry(entry))


@kernel
def free_pgtables(cpu: int, mm: int, start: int, end: int, prev_end: int, next_start: int) -> None:
    """Unlink the tables that map nothing but the hole around [start, end).

    Takes no page-table lock: it relies on nobody installing anything in the hole any more.
    """
    ceiling = next_start if next_start != 0 else load(mm + MM.task_size) + PAGE_SIZE
    address = start & -PMD_SIZE
    while address < end:
        next_ = address + PMD_SIZE
        slot = find_pmd(mm, address)
        if slot == 0:
            next_ = (address + PUD_SIZE) & -PUD_SIZE
        elif address >= prev_end and next_ <= ceiling:
            free_table_at(cpu, slot)
        address = next_
    free_upper_tables(cpu, mm, start, end, prev_end, ceiling)


@kernel
def free_table_at(cpu: int, slot: int) -> None:
    """Unlink the table that the entry at `slot` names, if any, into the gather."""
    entry = read_once(slot)
    if entry != 0:
        write_once(slot, 0)
        tlb_remove_table(cpu, virt_to_page(cpu, entry & PTE_ADDR_MASK))


@kernel
def free_upper_tables(cpu: int, mm: int, start: int, end: int, prev_end: int, ceiling: int) -> None:
    """Do the same for the tables of pmds and of puds, bottom up."""
    address = start & -PUD_SIZE
    while address < end:
        next_ = address + PUD_SIZE
        pgd = read_once(pgd_offset(mm, address))
        if pgd == 0:
            next_ = (address + PGDIR_SIZE) & -PGDIR_SIZE
        elif address >= prev_end and next_ <= ceiling:
            free_table_at(cpu, pud_offset(pgd, address))
        address = next_
    address = start & -PGDIR_SIZE
    while address < end:
        next_ = address + PGDIR_SIZE
        if address >= prev_end and next_ <= ceiling:
            free_table_at(cpu, pgd_offset(mm, address))
        address = next_


@kernel
def change_protection(cpu: int, vma: int, start: int, end: int, cp_flags: int) -> int:
    """Change the present entries of [start, end) as `cp_flags` say, then flush; returns how many.

    Without flags they get the VMA's protection, which needs the mmap lock for writing; with flags
    it may be held for reading.  Before 6.0 an entry is never made writable here: the write fault
    that follows does that, and finds out whether it may.
    """
    mm = load(vma + VMA.vm_mm)
    if cp_flags != 0:
        # before any page-table lock is taken: pairs with the look in flush_tlb_pending under it
        atomic_fetch_add(mm + MM.tlb_flush_pending, 1)
    prot = load(vma + VMA.vm_page_prot) & PTE_PROT_BITS
    writable = 0
    if CONFIG_LINUX_VERSION >= MPROTECT_MAKES_WRITABLE and load(vma + VMA.vm_flags) & Vm.WRITE:
        writable = Pte.RW
    changed = 0
    mmu_notifier_invalidate_range_start(cpu, mm, start, end)
    address = start
    while address < end:
        slot, next_ = find_pmd_range(mm, address, end)
        if slot != 0:
            huge = pmd_huge(read_once(slot))
            whole = huge != 0 and next_ - address == PMD_SIZE
            if whole and cp_flags == 0 and change_huge_pmd(cpu, mm, slot, prot, writable):
                changed += 1
            elif huge == 0 or (cp_flags & MmCp.PROT_NUMA) == 0:
                # a scan leaves huge pages alone
                pmd = pmd_of_ptes(cpu, mm, slot, address)
                if pmd != 0:
                    changed += change_pte_range(cpu, pmd, address, next_, prot, writable, cp_flags)
        address = next_
    if changed != 0:
        flush_tlb_mm(cpu, mm)
    mmu_notifier_invalidate_range_end(cpu, mm, start, end)
    if cp_flags != 0:
        atomic_fetch_add(mm + MM.tlb_flush_pending, -1)
    return changed


@kernel
def change_entry(cpu: int, entry: int, cp_flags: int) -> int:
    """Return an entry that maps a page, or a swap entry, as MM_CP_* flags want it.

    When userfaultfd's protection ends, the write fault that follows gives the right to write.  A
    scan leaves that right in the entry, where it means nothing without PRESENT, and leaves alone
    the zero page, what others map too, and parts of huge pages.
    """
    if cp_flags & MmCp.PROT_NUMA:
        page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
        if entry & (Pte.SPECIAL | Pte.PROTNONE) or read_once(page + PAGE.mapcount) != 1:
            return entry
        if load(page + PAGE.flags) & Pg.COMPOUND:
            return entry
        return (entry & ~(Pte.PRESENT | Pte.USER | Pte.NX)) | Pte.PROTNONE
    if cp_flags & MmCp.UFFD_WP:
        return (entry & ~Pte.RW) | Pte.UFFD_WP
    return entry & ~Pte.UFFD_WP


@kernel
def can_change_pte_writable(cpu: int, entry: int) -> int:
    """Tell whether a write would make an entry writable in place, with nothing else to do.

    That is one of an anonymous page that nobody shares, or of a file's page that is dirty already;
    one of a file in a private mapping never is.  A write to one that userfaultfd has protected has
    to fault.
    """
    if entry & (Pte.SPECIAL | Pte.UFFD_WP):
        return 0
    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
    if page_kind(page) == PageKind.FILE:
        return (entry & Pte.DIRTY) != 0
    # PageAnonExclusive the other way round: since 5.19 only a write fault finds that a page is not
    # shared any more
    if read_once(page + PAGE.flags) & Pg.ANON_SHARED:
        return 0
    return read_once(page + PAGE.refcount) == 1


@kernel
def change_pte_range(
    cpu: int, pmd: int, start: int, end: int, prot: int, writable: int, cp_flags: int
) -> int:
    """Rewrite the entries of one table under its lock; returns how many it changed.

    `writable` is added to those whose page a write fault would make writable in place.
    """
    ptl = pte_lockptr(cpu, pmd)
    changed = 0
    spin_lock(cpu, ptl)
    pte = pte_offset(pmd, start)
    last = pte + ((end - start) >> PAGE_SHIFT) * WORD
    while pte < last:
        entry = read_once(pte)
        changes = pte_present(entry)
        if CONFIG_NUMA and changes and cp_flags & MmCp.PROT_NUMA:
            changes = change_entry(cpu, entry, cp_flags) != entry
        if changes:
            # exchanged for 0 first, so that accessed and dirty bits set meanwhile are kept
            entry = xchg(pte, 0)
            if cp_flags != 0:
                entry = change_entry(cpu, entry, cp_flags)
            else:
                entry = (entry & ~PTE_PROT_BITS) | prot
                if writable != 0 and can_change_pte_writable(cpu, entry):
                    entry = entry | writable
            set_pte(pte, entry)
            changed += 1
        elif cp_flags & UFFD_CHANGES and is_swap_pte(entry):
            set_pte(pte, change_entry(cpu, entry, cp_flags))
        pte += WORD
    spin_unlock(ptl)
    return changed
