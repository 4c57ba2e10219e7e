# SPDX-License-Identifier: MIT
"""From an anonymous page to the ptes that map it (Linux 6.1, mm/rmap.c, mm/page_vma_mapped.c).

The walk holds the lock of the page's anon_vma.  A VMA unlinks itself, under that lock, before its
page tables are freed, so what the walk reads is there; that a pte is the page's is seen under its
page-table lock.  Bounds of a VMA that change meanwhile make the walk miss a pte at worst.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ANON_VMA, ANON_VMA_CHAIN, MM, PAGE, PAGE_SHIFT, PAGE_SIZE, VMA
from spfemu.mm.flags import PTE_ADDR_MASK, Pg, Pte, Vm
from spfemu.mm.gup import page_maybe_dma_pinned
from spfemu.mm.memory import page_remove_rmap
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import page_address, put_page, virt_to_page
from spfemu.mm.pgtable import find_pmd, pmd_bad, pte_lockptr, pte_offset, pte_present, set_pte
from spfemu.mm.rmap import anon_vma_unlock
from spfemu.mm.rss import add_mm_rss
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.swap_state import page_swapcache
from spfemu.mm.swapfile import swap_duplicate
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.primitives import (
    atomic_fetch_add_relaxed,
    atomic_fetch_and,
    atomic_fetch_or,
    load,
    read_once,
    smp_load_acquire,
    xchg,
)


@kernel
def page_mapped(page: int) -> int:
    """Tell whether a pte maps the page."""
    return read_once(page + PAGE.mapcount) != 0


@kernel
def page_lock_anon_vma_read(cpu: int, page: int) -> int:
    """Lock the anon_vma of a locked page with all its relatives; 0 if the page is not mapped.

    Until then it may be free, or another one's, but it is an anon_vma (SLAB_TYPESAFE_BY_RCU): its
    lock can be taken.  With the lock, a page that is still mapped is mapped by a VMA that is linked
    to it, so it stays.
    """
    mapping = read_once(page + PAGE.mapping)
    if mapping == 0 or page_mapped(page) == 0:
        return 0
    anon_vma = mapping - 1
    root = read_once(anon_vma + ANON_VMA.root)
    spin_lock(cpu, root + ANON_VMA.lock)
    if page_mapped(page) and read_once(page + PAGE.mapping) == mapping:
        if read_once(anon_vma + ANON_VMA.root) == root:
            return anon_vma
    spin_unlock(root + ANON_VMA.lock)
    return 0


@kernel
def page_address_in_vma(page: int, vma: int) -> int:
    """Return where `vma` would map the page, or -1 if that is outside it (vma_address)."""
    start = read_once(vma + VMA.vm_start)
    pages = load(page + PAGE.index) - read_once(vma + VMA.vm_pgoff)
    address = start + (pages << PAGE_SHIFT)
    if pages < 0 or address >= read_once(vma + VMA.vm_end):
        return -1
    return address


@kernel
def page_vma_mapped(cpu: int, page: int, vma: int, address: int) -> tuple[int, int]:
    """Find the pte by which `vma` maps the page: (its address, its lock, which is taken) or (0, 0).

    `address` is that of the page in the VMA, or -1.  Source: page_vma_mapped_walk.
    """
    if address < 0:
        return 0, 0
    slot = find_pmd(load(vma + VMA.vm_mm), address)
    pmd = read_once(slot) if slot != 0 else 0
    if pmd_bad(pmd):
        return 0, 0
    ptl = pte_lockptr(cpu, pmd)
    pte = pte_offset(pmd, address)
    spin_lock(cpu, ptl)
    entry = read_once(pte)
    if pte_present(entry) and entry & PTE_ADDR_MASK == page_address(cpu, page):
        return pte, ptl
    spin_unlock(ptl)
    return 0, 0


@slowpath
def page_referenced(cpu: int, page: int) -> int:
    """Return in how many ptes the accessed bit of a locked page was set; clears them.

    No flush: a CPU that has the page in its TLB does not set the bit again for as long (x86's
    ptep_clear_flush_young).
    """
    anon_vma = page_lock_anon_vma_read(cpu, page)
    if anon_vma == 0:
        return 0
    found = 0
    avc = load(anon_vma + ANON_VMA.head)
    while avc != 0:
        vma = load(avc + ANON_VMA_CHAIN.vma)
        pte, ptl = page_vma_mapped(cpu, page, vma, page_address_in_vma(page, vma))
        if pte != 0:
            if atomic_fetch_and(pte, ~Pte.ACCESSED) & Pte.ACCESSED:
                found += 1
            spin_unlock(ptl)
        avc = load(avc + ANON_VMA_CHAIN.next)
    anon_vma_unlock(anon_vma)
    return found


@slowpath
def try_to_unmap(cpu: int, page: int) -> int:
    """Replace all ptes that map a locked page; returns 1 if none maps it any more.

    The page is in the swap cache, and they become its entry; or MADV_FREE has given it up, and
    they become empty.  The caller has a reference.
    """
    anon_vma = page_lock_anon_vma_read(cpu, page)
    if anon_vma != 0:
        avc = load(anon_vma + ANON_VMA.head)
        while avc != 0:
            vma = load(avc + ANON_VMA_CHAIN.vma)
            address = page_address_in_vma(page, vma)
            if address >= 0:
                try_to_unmap_one(cpu, page, vma, address)
            avc = load(avc + ANON_VMA_CHAIN.next)
        anon_vma_unlock(anon_vma)
    return page_mapped(page) == 0


@kernel
def try_to_unmap_one(cpu: int, page: int, vma: int, address: int) -> None:
    """Unmap the page from one VMA, unless that is locked.

    The lock of the anon_vma keeps subscribers to the mm from coming or going.
    """
    mm = load(vma + VMA.vm_mm)
    mmu_notifier_invalidate_range_start(cpu, mm, address, address + PAGE_SIZE)
    pte, ptl = page_vma_mapped(cpu, page, vma, address)
    if pte != 0:
        if (load(vma + VMA.vm_flags) & Vm.LOCKED) == 0:
            try_to_unmap_pte(cpu, mm, page, pte, address)
        else:
            spin_unlock(ptl)
    mmu_notifier_invalidate_range_end(cpu, mm, address, address + PAGE_SIZE)


@kernel
def lazyfree_in_use(page: int) -> int:
    """Tell whether a page that MADV_FREE has given up was written to, or somebody may be about to.

    Who has taken it by get_user_pages shows in the count only, beside the ptes and the caller; the
    flush waited for walks without locks.  The acquire pairs with the update in put_page: who let go
    of the page has said before that it is dirty.  Source: Linux 5.18 (6c8e2a256915).
    """
    count = smp_load_acquire(page + PAGE.refcount)
    if count != read_once(page + PAGE.mapcount) + 1:
        return 1
    return (read_once(page + PAGE.flags) & Pg.DIRTY) != 0


@kernel
def try_to_unmap_pte(cpu: int, mm: int, page: int, pte: int, address: int) -> None:
    """Replace one pte; called with the page-table lock, returns without.

    The flush, with the lock held, comes before anything is done with the page: nobody writes to it
    any more, and the dirty bit of the old pte is final.  It also waited for walks without locks: a
    page that is not pinned by now stays so.  A pinned one keeps its pte, or the next write would
    copy it and take it away from who has pinned it (page_try_share_anon_rmap).
    """
    ptl = virt_to_page(cpu, pte) + PAGE.ptl
    entry = xchg(pte, 0)
    flush_tlb_mm(cpu, mm)
    mmu_notifier_invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    if page_maybe_dma_pinned(page):
        set_pte(pte, entry)
        spin_unlock(ptl)
        return
    if entry & Pte.DIRTY:
        atomic_fetch_or(page + PAGE.flags, Pg.DIRTY)
    if page_swapcache(page):
        swap = load(page + PAGE.private)
        swap_duplicate(cpu, swap)
        atomic_fetch_add_relaxed(mm + MM.swap_ents, 1)
        set_pte(pte, swap | (entry & Pte.UFFD_WP))
    elif lazyfree_in_use(page):
        # it is not free any more
        atomic_fetch_and(page + PAGE.flags, ~Pg.LAZYFREE)
        set_pte(pte, entry)
        spin_unlock(ptl)
        return
    add_mm_rss(cpu, mm, -1)
    page_remove_rmap(page)
    spin_unlock(ptl)
    put_page(cpu, page)
