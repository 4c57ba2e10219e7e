# SPDX-License-Identifier: MIT
"""Resizing and moving mappings: mm/mremap.c.

What programs see is as in Linux 6.18, where the checks come before the first change and a move
without resizing may take several VMAs along.  Moving changes no frame: entries go from one page
table to another, each under both page-table locks, and keep their place in their anon_vma because
vm_pgoff travels with them.

Whole tables are never moved by their link, as Linux does where ranges are aligned: that bypasses
the page-table lock on which speculative faults rely (Android had to take it out for the same
reason).
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE_MASK, PAGE_SHIFT, VMA, WORD
from spfemu.mm.flags import (
    DEFAULT_MAP_COUNT,
    PUD_SIZE,
    VM_UFFD_FLAGS,
    Errno,
    Map,
    Mremap,
    Pte,
    Vm,
)
from spfemu.mm.huge_memory import pmd_of_ptes
from spfemu.mm.i_mmap import vma_i_mmap_lock, vma_i_mmap_unlock, vma_link_file
from spfemu.mm.limits import VM_LOCKED_MASK, may_expand_vm, mlock_error, vm_stat_account
from spfemu.mm.mmap import do_munmap, get_unmapped_area, page_align
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_unlock, mmap_write_lock_killable
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import memalloc_noreclaim_restore, memalloc_noreclaim_save
from spfemu.mm.pgtable import (
    alloc_pmd,
    find_pmd,
    pte_lockptr,
    pte_offset,
    pte_present,
    set_pte,
    table_alloc,
)
from spfemu.mm.populate import __mm_populate
from spfemu.mm.rmap import anon_vma_clone, anon_vma_lock, anon_vma_unlock, unlink_anon_vmas
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.syscalls import mmap_unlock_after, syscall_result
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.vma import (
    find_vma,
    find_vma_intersection,
    find_vma_links,
    vm_area_dup,
    vm_area_free,
    vm_area_reserve,
    vma_link,
    vma_merge,
    vma_pages,
)
from spfemu.mm.vma_modify import vm_flags_reset
from spfemu.mm.vma_write import vm_write_begin, vm_write_end, vma_mark_attached, vma_start_write
from spfemu.mm.vmstat import count_vm_event, count_vm_events
from spfemu.mm.zap import pmd_addr_end
from spfemu.primitives import load, read_once, store, xchg

MREMAP_FLAGS = int(Mremap.MAYMOVE | Mremap.FIXED | Mremap.DONTUNMAP)
IMPLIES_NEW_ADDR = int(Mremap.FIXED | Mremap.DONTUNMAP)


@kernel
def sys_mremap(cpu: int, addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> int:
    """Resize or move a mapping [bytes]; returns its address or a negative errno."""
    count_vm_event(cpu, Event.CALL_MREMAP)
    mm = load(cpu + CPU.mm)
    old_len = page_align(old_len)
    new_len = page_align(new_len)
    error = check_mremap_params(mm, addr, old_len, new_len, flags, new_addr)
    if error != 0:
        return syscall_result(cpu, error)
    vm_area_reserve(cpu)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    if flags & IMPLIES_NEW_ADDR:
        result = remap_move(cpu, mm, addr, old_len, new_len, flags, new_addr)
        mremap_populate(cpu, mm, mmap_unlock_keep(cpu, mm, result), old_len, new_len)
        return syscall_result(cpu, result)
    if old_len < 0 or old_len > new_len:
        if find_vma_at(cpu, mm, addr) == 0:
            return syscall_result(cpu, mmap_unlock_keep(cpu, mm, -Errno.EFAULT))
        result = do_munmap(cpu, mm, addr + new_len, old_len - new_len, 1)
        result = mmap_unlock_after(cpu, mm, result)
        return syscall_result(cpu, result if result < 0 else addr)
    result = mremap_at(cpu, mm, addr, old_len, new_len, flags)
    mremap_populate(cpu, mm, mmap_unlock_keep(cpu, mm, result), old_len, new_len)
    return syscall_result(cpu, result)


@slowpath
def mremap_populate(cpu: int, mm: int, addr: int, old_len: int, new_len: int) -> None:
    """Touch what has been added to a locked mapping, now at `addr` (or a negative errno)."""
    if addr < 0 or new_len <= old_len:
        return
    mmap_read_lock(cpu, mm)
    vma = find_vma_at(cpu, mm, addr)
    locked = load(vma + VMA.vm_flags) & Vm.LOCKED if vma != 0 else 0
    mmap_read_unlock(cpu, mm)
    if locked:
        __mm_populate(cpu, mm, addr + old_len, new_len - old_len, 1)


@kernel
def mmap_unlock_keep(cpu: int, mm: int, result: int) -> int:
    """Release the mmap write lock; returns `result`."""
    mmap_unlock_after(cpu, mm, 0)
    return result


@kernel
def find_vma_at(cpu: int, mm: int, addr: int) -> int:
    """Return the VMA that covers `addr`, or 0; needs the mmap lock (Linux: vma_lookup)."""
    if addr < 0:
        return 0
    vma = find_vma(cpu, mm, addr)
    return vma if vma != 0 and load(vma + VMA.vm_start) <= addr else 0


@kernel
def check_mremap_params(
    mm: int, addr: int, old_len: int, new_len: int, flags: int, new_addr: int
) -> int:
    """Check what needs no lock; lengths are aligned.  0, -EINVAL or -ENOMEM."""
    task_size = load(mm + MM.task_size)
    if flags & ~MREMAP_FLAGS or addr & ~PAGE_MASK:
        return -Errno.EINVAL
    if new_len <= 0 or new_len > task_size:
        return -Errno.EINVAL
    if (flags & IMPLIES_NEW_ADDR) == 0:
        return 0
    if new_addr < 0 or new_addr > task_size - new_len or new_addr & ~PAGE_MASK:
        return -Errno.EINVAL
    if (flags & Mremap.MAYMOVE) == 0 or (flags & Mremap.DONTUNMAP and old_len != new_len):
        return -Errno.EINVAL
    # a length beyond the address space ends nowhere: the lookup will tell
    if 0 <= old_len <= task_size and 0 <= addr < task_size:
        if addr + old_len > new_addr and new_addr + new_len > addr:
            return -Errno.EINVAL
    if load(mm + MM.map_count) + 2 >= DEFAULT_MAP_COUNT - 3:
        return -Errno.ENOMEM
    return 0


@kernel
def check_prep_vma(mm: int, vma: int, addr: int, old_len: int, new_len: int, flags: int) -> int:
    """Check that [addr, addr + old_len) of `vma` may be moved or grown; 0 or a negative errno."""
    vm_flags = load(vma + VMA.vm_flags)
    if old_len == 0 and (vm_flags & (Vm.SHARED | Vm.MAYSHARE)) == 0:
        return -Errno.EINVAL
    if flags & Mremap.DONTUNMAP and vm_flags & Vm.DONTEXPAND:
        return -Errno.EINVAL
    # what is to be cut off may lie in other VMAs
    kept = new_len if old_len < 0 or old_len > new_len else old_len
    if kept > load(vma + VMA.vm_end) - addr:
        return -Errno.EFAULT
    if new_len <= old_len:
        return 0
    if vm_flags & Vm.DONTEXPAND:
        return -Errno.EFAULT
    pages = (new_len - old_len) >> PAGE_SHIFT
    error = mlock_error(mm, vm_flags, pages)
    if error != 0:
        return error
    return 0 if may_expand_vm(mm, vm_flags, pages) else -Errno.ENOMEM


# In place


@kernel
def mremap_at(cpu: int, mm: int, addr: int, old_len: int, new_len: int, flags: int) -> int:
    """Grow where it is if there is room, else move if that is allowed."""
    vma = find_vma_at(cpu, mm, addr)
    if vma == 0:
        return -Errno.EFAULT
    if old_len == new_len:
        return addr
    error = check_prep_vma(mm, vma, addr, old_len, new_len, flags)
    if error != 0:
        return error
    if vma_expandable(vma, addr, old_len, new_len, load(mm + MM.task_size)):
        return expand_vma_in_place(cpu, mm, vma, addr, new_len - old_len)
    if (flags & Mremap.MAYMOVE) == 0:
        return -Errno.ENOMEM
    file = load(vma + VMA.vm_file)
    new_addr = get_unmapped_area(cpu, mm, 0, new_len, 0, file)
    if new_addr < 0:
        return new_addr
    return move_vma(cpu, mm, vma, addr, old_len, new_len, new_addr, flags)


@kernel
def vma_expandable(vma: int, addr: int, old_len: int, new_len: int, task_size: int) -> int:
    """Tell whether the range ends its VMA and there is room behind it."""
    if load(vma + VMA.vm_end) - addr != old_len:
        return 0
    end = addr + new_len
    following = load(vma + VMA.vm_next)
    if following != 0 and load(following + VMA.vm_start) < end:
        return 0
    return end <= task_size


@kernel
def expand_vma_in_place(cpu: int, mm: int, vma: int, addr: int, delta: int) -> int:
    """Let `vma` grow by `delta` bytes, joining the next VMA if that is alike; returns `addr`."""
    end = load(vma + VMA.vm_end)
    pages = (end - load(vma + VMA.vm_start)) >> PAGE_SHIFT
    vma_merge(
        cpu,
        mm,
        vma,
        end,
        end + delta,
        load(vma + VMA.vm_flags),
        load(vma + VMA.anon_vma),
        load(vma + VMA.vm_file),
        load(vma + VMA.vm_pgoff) + pages,
        load(vma + VMA.vm_userfaultfd_ctx),
    )
    vm_stat_account(mm, load(vma + VMA.vm_flags), delta >> PAGE_SHIFT)
    return addr


# Moves


@kernel
def remap_move(
    cpu: int, mm: int, addr: int, old_len: int, new_len: int, flags: int, new_addr: int
) -> int:
    """Move to a given place; if that is all, all VMAs of the range with the gaps between them.

    Returns the new address of the first or a negative errno, with those before it moved.
    """
    if find_vma_at(cpu, mm, addr) == 0:
        return -Errno.EFAULT
    if old_len != new_len or (flags & Mremap.FIXED) == 0:
        return mremap_to(cpu, mm, addr, old_len, new_len, flags, new_addr)
    end = addr + old_len
    first = 0
    start = addr
    while start < end:
        vma = find_vma_intersection(cpu, mm, start, end)
        if vma == 0:
            return first
        if load(vma + VMA.vm_start) > start:
            start = load(vma + VMA.vm_start)
        part_end = load(vma + VMA.vm_end)
        part_end = part_end if part_end < end else end
        length = part_end - start
        target = new_addr if start == addr else first + (start - addr)
        moved = mremap_to(cpu, mm, start, length, length, flags, target)
        if moved < 0:
            return moved
        first = moved if start == addr else first
        start = part_end
    return first


@kernel
def mremap_to(
    cpu: int, mm: int, addr: int, old_len: int, new_len: int, flags: int, new_addr: int
) -> int:
    """Move a part of one VMA to a given place, resizing it on the way."""
    vma = find_vma_at(cpu, mm, addr)
    if vma == 0:
        return -Errno.EFAULT
    error = check_prep_vma(mm, vma, addr, old_len, new_len, flags)
    if error != 0:
        return error
    if flags & Mremap.FIXED:
        error = do_munmap(cpu, mm, new_addr, new_len, 0)
        if error < 0:
            return error
    if old_len > new_len:
        error = do_munmap(cpu, mm, addr + new_len, old_len - new_len, 0)
        if error < 0:
            return error
        old_len = new_len
    # what was unmapped may have been part of the same VMA
    vma = find_vma_at(cpu, mm, addr)
    if vma == 0:
        return -Errno.EFAULT
    if flags & Mremap.DONTUNMAP:
        if may_expand_vm(mm, load(vma + VMA.vm_flags), old_len >> PAGE_SHIFT) == 0:
            return -Errno.ENOMEM
    map_flags = Map.FIXED if flags & Mremap.FIXED else 0
    file = load(vma + VMA.vm_file)
    new_addr = get_unmapped_area(cpu, mm, new_addr, new_len, map_flags, file)
    if new_addr < 0:
        return new_addr
    return move_vma(cpu, mm, vma, addr, old_len, new_len, new_addr, flags)


@slowpath
def move_vma(
    cpu: int,
    mm: int,
    vma: int,
    addr: int,
    old_len: int,
    new_len: int,
    new_addr: int,
    flags: int,
) -> int:
    """Map [new_addr, new_addr + new_len) like `vma`, move the pages, unmap where they were.

    Returns `new_addr`, or -ENOMEM with the pages back where they were.
    """
    if load(mm + MM.map_count) >= DEFAULT_MAP_COUNT - 3:
        return -Errno.ENOMEM
    vma_start = load(vma + VMA.vm_start)
    vma_start_write(cpu, vma)
    new = copy_vma(cpu, mm, vma, addr, new_addr, new_len)
    if new == 0:
        return -Errno.ENOMEM
    # without pages the copy may have been merged with the VMA itself, before or behind it
    if load(new + VMA.vm_start) <= vma_start < load(new + VMA.vm_end):
        vma = new
    vm_stat_account(mm, load(new + VMA.vm_flags), new_len >> PAGE_SHIFT)
    vmas_write_begin(vma, new)
    moved = move_page_tables(cpu, vma, addr, new_addr, old_len)
    if moved < old_len:
        move_page_tables(cpu, new, new_addr, addr, moved)
    vmas_write_end(vma, new)
    if moved < old_len:
        do_munmap(cpu, mm, new_addr, new_len, 0)
        return -Errno.ENOMEM
    if flags & Mremap.DONTUNMAP:
        dontunmap_complete(cpu, mm, vma, addr, old_len)
    elif old_len != 0:
        # cannot fail: splits have their VMAs in reserve, and map_count was looked at
        do_munmap(cpu, mm, addr, old_len, 0)
    return new_addr


@kernel
def vmas_write_begin(vma: int, new: int) -> None:
    """Begin to change ptes of both VMAs, which may be one."""
    vm_write_begin(vma)
    if new != vma:
        vm_write_begin(new)


@kernel
def vmas_write_end(vma: int, new: int) -> None:
    """End it."""
    if new != vma:
        vm_write_end(new)
    vm_write_end(vma)


@kernel
def dontunmap_complete(cpu: int, mm: int, vma: int, addr: int, length: int) -> None:
    """Leave the old range mapped, empty; a VMA that has no pages left forgets its anon_vmas.

    The old VMA, all of it, is not locked any more.
    """
    vm_flags = load(vma + VMA.vm_flags)
    if vm_flags & VM_LOCKED_MASK:
        if vm_flags & Vm.LOCKED:
            store(mm + MM.locked_vm, load(mm + MM.locked_vm) - vma_pages(vma))
        vm_flags_reset(cpu, vma, vm_flags & ~VM_LOCKED_MASK)
    if load(vma + VMA.vm_start) == addr and load(vma + VMA.vm_end) == addr + length:
        unlink_anon_vmas(cpu, vma)


@kernel
def copy_vma(cpu: int, mm: int, vma: int, addr: int, new_addr: int, length: int) -> int:
    """Map [new_addr, new_addr + length), free, like `vma` at `addr`; the VMA, or 0: no memory.

    The offset stays that of the pages; an anonymous VMA without any gets that of its new address,
    with which it is more likely to be merged.  A userfaultfd context stays behind, as the monitor
    has not asked to be told (mremap_userfaultfd_prep, without UFFD_FEATURE_EVENT_REMAP).
    """
    pgoff = load(vma + VMA.vm_pgoff) + ((addr - load(vma + VMA.vm_start)) >> PAGE_SHIFT)
    anon_vma = load(vma + VMA.anon_vma)
    file = load(vma + VMA.vm_file)
    if file == 0 and anon_vma == 0:
        pgoff = new_addr >> PAGE_SHIFT
    end = new_addr + length
    overlaps, prev = find_vma_links(mm, new_addr, end)
    if overlaps:
        return 0
    vm_flags = load(vma + VMA.vm_flags) & ~VM_UFFD_FLAGS
    new = vma_merge(cpu, mm, prev, new_addr, end, vm_flags, anon_vma, file, pgoff, 0)
    if new != 0:
        if load(new + VMA.anon_vma) == 0 and anon_vma != 0:
            # as for any merge, it has inherited none, so this cannot fail
            anon_vma_clone(cpu, new, vma)
        return new
    new = vm_area_dup(cpu, vma)
    if new == 0:
        return 0
    store(new + VMA.vm_start, new_addr)
    store(new + VMA.vm_end, end)
    store(new + VMA.vm_pgoff, pgoff)
    store(new + VMA.vm_flags, vm_flags)
    store(new + VMA.vm_userfaultfd_ctx, 0)
    if anon_vma_clone(cpu, new, vma) != 0:
        vm_area_free(cpu, new)
        return 0
    vma_start_write(cpu, new)
    vma_mark_attached(cpu, new)
    vma_link(mm, new, prev)
    vma_link_file(cpu, new, 0)
    return new


@kernel
def move_page_tables(cpu: int, vma: int, old_addr: int, new_addr: int, length: int) -> int:
    """Move the entries of [old_addr, old_addr + length), part of `vma`, to `new_addr`.

    Returns how many bytes were done: less than `length` if a page table could not be had.  Needs
    the mmap lock for writing.  With anon_vma and i_mmap locked, a walk over their VMAs finds each
    page at one of its places.
    """
    mm = load(vma + VMA.vm_mm)
    anon_vma = load(vma + VMA.anon_vma)
    done = 0
    mmu_notifier_invalidate_range_start(cpu, mm, old_addr, old_addr + length)
    # reclaim would want the same locks
    memalloc_noreclaim_save(cpu)
    vma_i_mmap_lock(cpu, vma)
    if anon_vma != 0:
        anon_vma_lock(cpu, anon_vma)
    while done < length:
        old = old_addr + done
        end = pmd_addr_end(old, old_addr + length)
        room = pmd_addr_end(new_addr + done, new_addr + length) - (new_addr + done)
        extent = end - old if end - old < room else room
        slot = find_pmd(mm, old)
        if slot == 0:
            # nothing below this pud entry
            extent = ((old + PUD_SIZE) & -PUD_SIZE) - old
            extent = extent if extent < length - done else length - done
        elif pmd_of_ptes(cpu, mm, slot, old) != 0:
            new_slot = alloc_pmd(cpu, mm, new_addr + done)
            if new_slot == 0:
                break
            new_pmd = read_once(new_slot)
            if new_pmd == 0:
                new_pmd = table_alloc(cpu, mm, new_slot)
            if new_pmd == 0:
                break
            move_ptes(cpu, mm, read_once(slot), old, new_pmd, new_addr + done, extent)
        done += extent
    if anon_vma != 0:
        anon_vma_unlock(anon_vma)
    vma_i_mmap_unlock(cpu, vma)
    memalloc_noreclaim_restore(cpu)
    mmu_notifier_invalidate_range_end(cpu, mm, old_addr, old_addr + length)
    return done


@kernel
def move_ptes(
    cpu: int, mm: int, old_pmd: int, old: int, new_pmd: int, new: int, extent: int
) -> None:
    """Move `extent` bytes' entries from one table to another or within one.

    An entry that userfaultfd has write-protected is an ordinary one at its new place (6.13).
    TLBs are flushed before the locks are released: a fault at the new address must not make the
    page writable or copy it while somebody still writes through the old one.  Two locks of a kind
    are taken, as fork does; nobody else takes two of the same mm, and mmap writers exclude each
    other.
    """
    old_ptl = pte_lockptr(cpu, old_pmd)
    new_ptl = pte_lockptr(cpu, new_pmd)
    spin_lock(cpu, old_ptl)
    if new_ptl != old_ptl:
        spin_lock(cpu, new_ptl)
    pte = pte_offset(old_pmd, old)
    new_pte = pte_offset(new_pmd, new)
    last = pte + (extent >> PAGE_SHIFT) * WORD
    moved = 0
    present = 0
    while pte < last:
        if read_once(pte) != 0:
            # accessed and dirty bits that the hardware sets meanwhile are kept
            entry = xchg(pte, 0)
            present = present | pte_present(entry)
            set_pte(new_pte, entry & ~Pte.UFFD_WP)
            moved += 1
        pte += WORD
        new_pte += WORD
    if present:
        flush_tlb_mm(cpu, mm)
    if new_ptl != old_ptl:
        spin_unlock(new_ptl)
    spin_unlock(old_ptl)
    count_vm_events(cpu, Event.PAGES_MOVED, moved)
