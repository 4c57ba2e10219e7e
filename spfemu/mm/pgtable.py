# SPDX-License-Identifier: MIT
"""Page tables: four levels of 512 entries in frames, with x86-64 entry bits.

An entry holds the address of the next table or of the frame: the emulated machine's physical
addresses are the segment's addresses.  Tables of ptes have a lock of their own in their PAGE
(split page-table locks); all upper levels are under mm->page_table_lock.

Source: Linux 5.12, mm/memory.c (__pte_alloc and its kin) and arch/x86/include/asm/pgtable.h.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import MM, PAGE, PAGE_SHIFT, WORD
from spfemu.mm.flags import PGDIR_SHIFT, PMD_SHIFT, PTE_ADDR_MASK, PUD_SHIFT, PageKind, Pte
from spfemu.mm.page_alloc import alloc_zeroed_page, free_page, page_address, virt_to_page
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import atomic_fetch_add_relaxed, read_once, smp_store_release, store

PTE_PRESENT_OR_PROTNONE = int(Pte.PRESENT | Pte.PROTNONE)
TABLE_BITS = int(Pte.PRESENT | Pte.RW | Pte.USER | Pte.ACCESSED)
INDEX_MASK = 511


@kernel
def pgd_offset(mm: int, address: int) -> int:
    """Address of the top-level entry for `address`; the table itself never changes."""
    return read_once(mm + MM.pgd) + (((address >> PGDIR_SHIFT) & INDEX_MASK) * WORD)


@kernel
def pud_offset(pgd: int, address: int) -> int:
    """Address of the pud entry in the table that the entry value `pgd` names."""
    return (pgd & PTE_ADDR_MASK) + (((address >> PUD_SHIFT) & INDEX_MASK) * WORD)


@kernel
def pmd_offset(pud: int, address: int) -> int:
    """Address of the pmd entry in the table that the entry value `pud` names."""
    return (pud & PTE_ADDR_MASK) + (((address >> PMD_SHIFT) & INDEX_MASK) * WORD)


@kernel
def pte_offset(pmd: int, address: int) -> int:
    """Address of the pte in the table that the entry value `pmd` names."""
    return (pmd & PTE_ADDR_MASK) + (((address >> PAGE_SHIFT) & INDEX_MASK) * WORD)


@kernel
def pte_lockptr(cpu: int, pmd: int) -> int:
    """Address of the split lock of the pte table that the entry value `pmd` names."""
    return virt_to_page(cpu, pmd & PTE_ADDR_MASK) + PAGE.ptl


@kernel
def pte_present(pte: int) -> int:
    """Tell whether a frame is mapped, accessible or not."""
    return (pte & PTE_PRESENT_OR_PROTNONE) != 0


@kernel
def pmd_bad(pmd: int) -> int:
    """Tell whether an upper entry is anything but a link to a table."""
    return (pmd & (Pte.PRESENT | Pte.PSE)) != Pte.PRESENT


@kernel
def set_pte(pte: int, value: int) -> None:
    """Write an entry.

    The release orders the frame's or table's contents before it; it pairs with the address
    dependency of whoever walks through the entry, hardware included.
    """
    smp_store_release(pte, value)


@kernel
def find_pmd(mm: int, address: int) -> int:
    """Address of the pmd entry for `address`, or 0 if a table above it is missing.

    For holders of a lock that keeps the tables; reads each level once.
    """
    pgd = read_once(pgd_offset(mm, address))
    if pgd == 0:
        return 0
    pud = read_once(pud_offset(pgd, address))
    if pud == 0:
        return 0
    return pmd_offset(pud, address)


@kernel
def pmd_huge(pmd: int) -> int:
    """Tell whether an entry maps a huge frame (pmd_trans_huge); also while it is being split."""
    return pmd & Pte.PSE


@kernel
def huge_pte(pmd: int, address: int) -> int:
    """Entry as which a huge pmd entry maps the page of `address`."""
    return (pmd & ~Pte.PSE) + (((address >> PAGE_SHIFT) & INDEX_MASK) << PAGE_SHIFT)


@kernel
def lookup_pte(mm: int, address: int) -> int:
    """Return the entry that maps the page of `address`, 0 if there is none; as `find_pmd`.

    A huge one that is being split maps its frames, though nobody has access (x86's pmd_present):
    it must not look like a swap entry.
    """
    slot = find_pmd(mm, address)
    if slot == 0:
        return 0
    pmd = read_once(slot)
    if pmd_huge(pmd):
        entry = huge_pte(pmd, address)
        return entry if pte_present(entry) else entry | Pte.PROTNONE
    return 0 if pmd_bad(pmd) else read_once(pte_offset(pmd, address))


@kernel
def alloc_pmd(cpu: int, mm: int, address: int) -> int:
    """Address of the pmd entry for `address`, allocating tables above it; 0 if out of memory.

    Needs the mmap lock in any mode.
    """
    slot = pgd_offset(mm, address)
    pgd = read_once(slot)
    if pgd == 0:
        pgd = table_alloc(cpu, mm, slot)
        if pgd == 0:
            return 0
    slot = pud_offset(pgd, address)
    pud = read_once(slot)
    if pud == 0:
        pud = table_alloc(cpu, mm, slot)
        if pud == 0:
            return 0
    return pmd_offset(pud, address)


@slowpath
def table_alloc(cpu: int, mm: int, slot: int) -> int:
    """Link a fresh table into the empty entry at `slot`; returns the entry, or 0.

    Another CPU may have been faster: its table is used.  Linux orders the clearing before the
    link with smp_wmb() in __pte_alloc; here the release in set_pte does.
    """
    page = alloc_zeroed_page(cpu, PageKind.TABLE)
    if page == 0:
        return 0
    store(page + PAGE.ptl, 0)
    store(page + PAGE.private, mm)
    store(page + PAGE.mapping, 0)
    spin_lock(cpu, mm + MM.page_table_lock)
    entry = read_once(slot)
    if entry == 0:
        entry = page_address(cpu, page) | TABLE_BITS
        set_pte(slot, entry)
        page = 0
    spin_unlock(mm + MM.page_table_lock)
    if page != 0:
        free_table_now(cpu, page)
    else:
        atomic_fetch_add_relaxed(mm + MM.pgtables, 1)
    return entry


@slowpath
def free_table_now(cpu: int, page: int) -> None:
    """Free a page table that no walker can be inside any more."""
    store(page + PAGE.refcount, 0)
    free_page(cpu, page)
