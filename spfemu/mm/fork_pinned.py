# SPDX-License-Identifier: MIT
"""What a fork does about frames that are pinned for I/O: it copies them (Linux 5.12, mm/memory.c).

Shared with the child, a pinned frame would be taken from its owner by the owner's next write, and
the I/O would go on in a frame that nobody maps.  So the child gets a copy at once, and the parent's
entry stays writable.

The kernel copies where it meets the frame (copy_present_page); here a pass over a table's entries
comes before the one that shares the rest, and only once something has been pinned.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import MM, PAGE, PAGE_SIZE, VMA, WORD
from spfemu.mm.flags import PAGE_KIND_MASK, PTE_ADDR_MASK, Errno, PageKind, Pte, Vm
from spfemu.mm.gup import page_needs_cow_for_dma
from spfemu.mm.memory import WRITABLE, page_add_new_anon_rmap, put_new_page
from spfemu.mm.page_alloc import alloc_page, page_address, virt_to_page
from spfemu.mm.pgtable import pte_lockptr, pte_offset, pte_present, set_pte
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import copy_page, load, read_once, smp_mb, smp_wmb, write_once


@kernel
def write_protect_seqcount_begin(mm: int) -> None:
    """Say that entries become read-only; the mmap lock is held for writing.

    The barrier is a full one: either this fork sees a pin in the frame's count (and has_pinned), or
    who pins, whose update is of full order too, sees the odd count at the end.  The kernel has a
    write barrier, and the updates of page-table locks that follow.
    """
    write_once(mm + MM.write_protect_seq, load(mm + MM.write_protect_seq) + 1)
    smp_mb()


@kernel
def write_protect_seqcount_end(mm: int) -> None:
    """Say that they are; pairs with the acquire in `lockless_pages_from_mm`."""
    smp_wmb()
    write_once(mm + MM.write_protect_seq, load(mm + MM.write_protect_seq) + 1)


@kernel
def pinned_anon_page(cpu: int, mm: int, entry: int) -> int:
    """Return the PAGE of an entry of `mm` if a fork has to copy it, else 0."""
    if pte_present(entry) == 0 or entry & Pte.SPECIAL:
        return 0
    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
    if read_once(page + PAGE.flags) & PAGE_KIND_MASK != PageKind.ANON:
        return 0
    return page if page_needs_cow_for_dma(mm, page) else 0


@slowpath
def copy_pinned_range(
    cpu: int, vma: int, src_vma: int, pmd: int, src_pmd: int, start: int, end: int
) -> int:
    """Copy the pinned frames that one table of `src_vma` maps into the child's `vma`.

    Returns their number, or -ENOMEM with a part done.
    """
    src_pte = pte_offset(src_pmd, start)
    mm = load(src_vma + VMA.vm_mm)
    address = start
    count = 0
    while address < end:
        if pinned_anon_page(cpu, mm, read_once(src_pte)):
            copied = copy_pinned_page(cpu, vma, src_vma, pmd, src_pmd, address)
            if copied < 0:
                return copied
            count += copied
        src_pte += WORD
        address += PAGE_SIZE
    return count


@kernel
def copy_pinned_page(cpu: int, vma: int, src_vma: int, pmd: int, src_pmd: int, address: int) -> int:
    """Map a copy of the pinned frame at `address` in the child.

    Returns 1, 0 if it is not pinned any more, or -ENOMEM.
    """
    page = alloc_page(cpu, PageKind.ANON)
    if page == 0:
        return -Errno.ENOMEM
    src_ptl = pte_lockptr(cpu, src_pmd)
    spin_lock(cpu, src_ptl)
    old = pinned_anon_page(cpu, load(src_vma + VMA.vm_mm), read_once(pte_offset(src_pmd, address)))
    if old != 0:
        copy_page(page_address(cpu, page), page_address(cpu, old))
    spin_unlock(src_ptl)
    if old == 0:
        put_new_page(cpu, page)
        return 0
    entry = page_address(cpu, page) | load(vma + VMA.vm_page_prot) | Pte.DIRTY
    if load(vma + VMA.vm_flags) & Vm.WRITE:
        entry = entry | WRITABLE
    ptl = pte_lockptr(cpu, pmd)
    spin_lock(cpu, ptl)
    page_add_new_anon_rmap(page, vma, address)
    set_pte(pte_offset(pmd, address), entry)
    spin_unlock(ptl)
    count_vm_event(cpu, Event.FORK_COPY_PINNED)
    return 1
