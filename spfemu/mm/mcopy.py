# SPDX-License-Identifier: MIT
"""What a userfaultfd monitor does about a fault: fill the page, or end its write protection.

Answers to mm/userfaultfd.c and the ioctls of fs/userfaultfd.c (Linux 5.12), for anonymous memory.
A page is copied before the mmap lock is taken, which is held for one page at a time; the kernel
holds it for the whole range unless the source has to be faulted in.
"""

from enum import IntFlag

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE_SHIFT, PAGE_SIZE, USERFAULTFD_CTX, VMA
from spfemu.mm.flags import PTE_ADDR_MASK, Errno, PageKind, Pte, Vm
from spfemu.mm.fork import mmput
from spfemu.mm.huge_memory import pmd_of_ptes
from spfemu.mm.memory import page_add_new_anon_rmap, put_new_page
from spfemu.mm.mm_struct import mmget_not_zero
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_lock_other, mmap_read_unlock
from spfemu.mm.mmu import READABLE, translate
from spfemu.mm.page_alloc import alloc_page, page_address
from spfemu.mm.pgtable import alloc_pmd, pte_lockptr, pte_offset, set_pte, table_alloc
from spfemu.mm.rmap import anon_vma_prepare
from spfemu.mm.rss import add_mm_rss
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.userfaultfd import userfaultfd_validate_range, wake_userfault
from spfemu.mm.vma import find_vma
from spfemu.mm.vmstat import count_vm_events
from spfemu.mm.zap import MmCp, change_protection
from spfemu.primitives import copy_page, load, read_once


class UffdCopy(IntFlag):
    """Modes of UFFDIO_COPY and UFFDIO_ZEROPAGE; UFFDIO_WRITEPROTECT takes the same here.

    In Linux the latter has the two bits the other way round.
    """

    DONTWAKE = 1
    WP = 2


UFFD_COPY_MODES = int(UffdCopy.DONTWAKE | UffdCopy.WP)


@kernel
def find_dst_vma(cpu: int, mm: int, start: int, length: int) -> int:
    """Return the served VMA that contains the range, or 0; needs the mmap lock."""
    vma = find_vma(cpu, mm, start)
    if vma == 0 or start < load(vma + VMA.vm_start):
        return 0
    if start + length > load(vma + VMA.vm_end):
        return 0
    return vma if load(vma + VMA.vm_userfaultfd_ctx) != 0 else 0


@slowpath
def userfaultfd_copy(cpu: int, ctx: int, dst: int, src: int, length: int, mode: int) -> int:
    """UFFDIO_COPY: fill missing pages from memory of this CPU's mm, and wake who waits for them.

    Returns the bytes copied, fewer than `length` if an error came then, or a negative errno.
    """
    mm = load(ctx + USERFAULTFD_CTX.mm)
    error = userfaultfd_validate_range(mm, dst, length)
    if error != 0:
        return error
    if mode & ~UFFD_COPY_MODES:
        return -Errno.EINVAL
    if mmget_not_zero(mm) == 0:
        return -Errno.ESRCH
    done = 0
    while done < length and error == 0:
        error = mcopy_atomic_page(cpu, mm, dst + done, src + done, length - done, mode)
        if error == 0:
            done += PAGE_SIZE
    mmput(cpu, mm)
    count_vm_events(cpu, Event.UFFD_COPY, done >> PAGE_SHIFT)
    if done == 0:
        return error
    if (mode & UffdCopy.DONTWAKE) == 0:
        wake_userfault(cpu, ctx, dst, done)
    return done


@slowpath
def mcopy_atomic_page(cpu: int, mm: int, dst: int, src: int, rest: int, mode: int) -> int:
    """Copy one page and map it, the first of `rest` bytes that one VMA must hold; 0 or an errno."""
    page = alloc_page(cpu, PageKind.ANON)
    if page == 0:
        return -Errno.ENOMEM
    entry = translate(cpu, src, READABLE)
    if entry < 0:
        put_new_page(cpu, page)
        return -Errno.EFAULT
    # no IPI is served between translation and copy: the frame is the page's own as long
    copy_page(page_address(cpu, page), entry & PTE_ADDR_MASK)
    mmap_read_lock_other(cpu, mm)
    vma = find_dst_vma(cpu, mm, dst, rest)
    error = mcopy_check(cpu, vma, mode)
    if error == 0:
        error = mcopy_map(cpu, mm, vma, dst, page, mode)
    mmap_read_unlock(cpu, mm)
    if error != 0:
        put_new_page(cpu, page)
    return error


@kernel
def mcopy_check(cpu: int, vma: int, mode: int) -> int:
    """Check that `vma` (0: none) may get a page in this mode, with its anon_vma; 0 or an errno."""
    if vma == 0:
        return -Errno.ENOENT
    if load(vma + VMA.vm_ops) != 0:
        return -Errno.EINVAL
    if mode & UffdCopy.WP and (load(vma + VMA.vm_flags) & Vm.UFFD_WP) == 0:
        return -Errno.EINVAL
    return anon_vma_prepare(cpu, vma)


@kernel
def mcopy_lock(cpu: int, mm: int, address: int) -> tuple[int, int]:
    """Lock the page table of `address`, made if need be: (its lock, the pte's address) or (0, 0).

    Needs the mmap lock for reading.
    """
    slot = alloc_pmd(cpu, mm, address)
    if slot == 0:
        return 0, 0
    pmd = pmd_of_ptes(cpu, mm, slot, address)
    if pmd == 0:
        pmd = table_alloc(cpu, mm, slot)
        if pmd == 0:
            return 0, 0
    ptl = pte_lockptr(cpu, pmd)
    spin_lock(cpu, ptl)
    return ptl, pte_offset(pmd, address)


@kernel
def mcopy_map(cpu: int, mm: int, vma: int, dst: int, page: int, mode: int) -> int:
    """Map a page that has been filled; 0, -EEXIST if something is mapped there, or -ENOMEM."""
    ptl, pte = mcopy_lock(cpu, mm, dst)
    if ptl == 0:
        return -Errno.ENOMEM
    if read_once(pte) != 0:
        spin_unlock(ptl)
        return -Errno.EEXIST
    entry = page_address(cpu, page) | load(vma + VMA.vm_page_prot) | Pte.DIRTY
    if load(vma + VMA.vm_flags) & Vm.WRITE:
        entry = entry | (Pte.UFFD_WP if mode & UffdCopy.WP else Pte.RW)
    page_add_new_anon_rmap(page, vma, dst)
    add_mm_rss(cpu, mm, 1)
    set_pte(pte, entry)
    spin_unlock(ptl)
    return 0


@slowpath
def userfaultfd_zeropage(cpu: int, ctx: int, start: int, length: int, mode: int) -> int:
    """UFFDIO_ZEROPAGE: map the zero page where pages are missing; results as of the copy."""
    mm = load(ctx + USERFAULTFD_CTX.mm)
    error = userfaultfd_validate_range(mm, start, length)
    if error != 0:
        return error
    if mode & ~UffdCopy.DONTWAKE:
        return -Errno.EINVAL
    if mmget_not_zero(mm) == 0:
        return -Errno.ESRCH
    mmap_read_lock_other(cpu, mm)
    vma = find_dst_vma(cpu, mm, start, length)
    error = mcopy_check(cpu, vma, 0)
    done = 0
    while done < length and error == 0:
        error = mfill_zeropage(cpu, mm, vma, start + done)
        if error == 0:
            done += PAGE_SIZE
    mmap_read_unlock(cpu, mm)
    mmput(cpu, mm)
    count_vm_events(cpu, Event.UFFD_ZEROPAGE, done >> PAGE_SHIFT)
    if done == 0:
        return error
    if (mode & UffdCopy.DONTWAKE) == 0:
        wake_userfault(cpu, ctx, start, done)
    return done


@kernel
def mfill_zeropage(cpu: int, mm: int, vma: int, address: int) -> int:
    """Map the zero page at a missing page; 0, -EEXIST or -ENOMEM."""
    ptl, pte = mcopy_lock(cpu, mm, address)
    if ptl == 0:
        return -Errno.ENOMEM
    error = -Errno.EEXIST
    if read_once(pte) == 0:
        set_pte(pte, load(cpu + CPU.zero_pfn) | load(vma + VMA.vm_page_prot) | Pte.SPECIAL)
        error = 0
    spin_unlock(ptl)
    return error


@slowpath
def userfaultfd_writeprotect(cpu: int, ctx: int, start: int, length: int, mode: int) -> int:
    """UFFDIO_WRITEPROTECT: protect what is mapped in the range, or end that and wake; 0 or errno.

    Missing pages are not protected, as before 6.4.  Source: mwriteprotect_range.
    """
    mm = load(ctx + USERFAULTFD_CTX.mm)
    error = userfaultfd_validate_range(mm, start, length)
    if error != 0:
        return error
    protects = mode & UffdCopy.WP
    if mode & ~UFFD_COPY_MODES or (protects and mode & UffdCopy.DONTWAKE):
        return -Errno.EINVAL
    if mmget_not_zero(mm) == 0:
        return -Errno.ESRCH
    mmap_read_lock(cpu, mm)
    vma = find_dst_vma(cpu, mm, start, length)
    if vma == 0 or (load(vma + VMA.vm_flags) & Vm.UFFD_WP) == 0:
        error = -Errno.ENOENT
    else:
        cp_flags = MmCp.UFFD_WP if protects else MmCp.UFFD_WP_RESOLVE
        changed = change_protection(cpu, vma, start, start + length, cp_flags)
        event = Event.UFFD_WRITEPROTECT if protects else Event.UFFD_UNPROTECT
        count_vm_events(cpu, event, changed)
    mmap_read_unlock(cpu, mm)
    mmput(cpu, mm)
    if error == 0 and mode == 0:
        wake_userfault(cpu, ctx, start, length)
    return error
