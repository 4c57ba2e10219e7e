# SPDX-License-Identifier: MIT
"""Mapping and unmapping, the heap, and the search for free addresses.

Answers to mm/mmap.c and arch/x86/kernel/sys_x86_64.c (Linux 5.12).  Everything here needs the
mmap lock for writing; `do_munmap` may give it back as a read lock.
"""

from enum import IntEnum

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, MM, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VMA
from spfemu.mm.config import CONFIG_LINUX_VERSION
from spfemu.mm.file_table import shmem_file_setup
from spfemu.mm.flags import DEFAULT_MAP_COUNT, PMD_SIZE, STACK_GUARD_GAP, Errno, Map, Prot, Vm
from spfemu.mm.i_mmap import vma_link_file, vma_mapping
from spfemu.mm.limits import can_do_mlock, may_expand_vm, mlock_error, vm_stat_account
from spfemu.mm.map_type import anon_map_flags, file_map_flags
from spfemu.mm.mmap_lock import mmap_write_downgrade
from spfemu.mm.rbtree import rb_subtree_gap, vma_compute_gap
from spfemu.mm.versions import (
    BRK_NEEDS_A_MAPPING,
    MMAP_ALIGNS_TO_PMD,
    STACKS_HAVE_NO_HUGE_PAGES,
)
from spfemu.mm.vma import (
    VM_MAY_FLAGS,
    __split_vma,
    detach_vmas_to_be_unmapped,
    find_vma,
    find_vma_intersection,
    find_vma_links,
    vm_area_alloc,
    vm_area_free,
    vm_get_page_prot,
    vma_link,
    vma_merge,
    vma_pages,
    vma_set_file,
)
from spfemu.mm.vma_write import (
    vma_mark_attached,
    vma_start_write,
    vmas_mark_detached,
    vmas_start_write,
)
from spfemu.mm.zap import unmap_region
from spfemu.primitives import load, store

VM_DATA_FLAGS = int(Vm.READ | Vm.WRITE | Vm.ACCOUNT) | VM_MAY_FLAGS
"""vm_flags of the heap."""


class Gap(IntEnum):
    """What `gap_fits` says about the gap in front of a VMA."""

    TOO_SMALL = 0
    FITS = 1
    TOO_LOW = 2


@kernel
def page_align(size: int) -> int:
    """Round up to whole pages (Linux: PAGE_ALIGN)."""
    return (size + PAGE_SIZE - 1) & PAGE_MASK


@kernel
def range_wraps(start: int, length: int) -> int:
    """Tell whether a range that is not empty goes around the end of all 64-bit addresses.

    Negative numbers are the unsigned ones from 2**63 on.
    """
    length = page_align(length)
    if length == 0 or (start < 0 and length < 0):
        return 1
    return (start < 0 or length < 0) and start + length >= 0


@kernel
def calc_vm_prot_bits(prot: int) -> int:
    """Translate access rights of a call into vm_flags; unknown bits are dropped, as in Linux."""
    return prot & (Prot.READ | Prot.WRITE | Prot.EXEC)


@kernel
def calc_vm_flag_bits(flags: int) -> int:
    """Translate flags of mmap into vm_flags."""
    vm_flags = 0
    if flags & Map.GROWSDOWN:
        vm_flags = Vm.GROWSDOWN
    if flags & Map.LOCKED:
        vm_flags = vm_flags | Vm.LOCKED
    if flags & Map.NORESERVE:
        vm_flags = vm_flags | Vm.NORESERVE
    if CONFIG_LINUX_VERSION >= STACKS_HAVE_NO_HUGE_PAGES and flags & Map.STACK:
        vm_flags = vm_flags | Vm.NOHUGEPAGE
    return vm_flags


@kernel
def round_hint_to_min(mm: int, hint: int) -> int:
    """Round a hint down to a page, and up to the lowest address that may be mapped."""
    hint = hint & PAGE_MASK
    lowest = load(mm + MM.mmap_min_addr)
    return page_align(lowest) if 0 < hint < lowest else hint


# The search for free addresses.


@kernel
def gap_fits(vma: int, length: int, low: int, high: int) -> int:
    """Judge the gap in front of `vma` for `length` bytes within [low, high).

    TOO_LOW: it ends too low, and so do all gaps below it.  TOO_SMALL: a lower one may do.
    """
    end = load(vma + VMA.vm_start)
    if end < low + length:
        return Gap.TOO_LOW
    gap = vma_compute_gap(vma)
    if gap >= length and end - gap <= high - length:
        return Gap.FITS
    return Gap.TOO_SMALL


@kernel
def vm_start_gap(vma: int) -> int:
    """Return where `vma` starts, with the gap that a stack keeps free below it."""
    start = load(vma + VMA.vm_start)
    if load(vma + VMA.vm_flags) & Vm.GROWSDOWN:
        start -= STACK_GUARD_GAP
        start = start if start > 0 else 0
    return start


@kernel
def unmapped_area_topdown(cpu: int, mm: int, length: int, low: int, high: int) -> int:
    """Return the highest address for `length` bytes within [low, high), or -ENOMEM.

    Where a stack would be left too little room, the search goes on below its guard gap, as since
    6.1: whatever is mapped inside the gap does not shorten it.
    """
    while True:
        addr = highest_gap(mm, length, low, high)
        if addr < 0:
            return addr
        following = find_vma(cpu, mm, addr)
        if following == 0 or vm_start_gap(following) >= addr + length:
            return addr
        high = vm_start_gap(following)


@kernel
def highest_gap(mm: int, length: int, low: int, high: int) -> int:
    """Return the highest free address for `length` bytes within [low, high), or -ENOMEM.

    Goes through the VMAs from above, leaving out subtrees without a gap that is long enough.
    """
    if high - low < length:
        return -Errno.ENOMEM
    if load(mm + MM.highest_vm_end) <= high - length:
        return high - length
    vma = load(mm + MM.mm_rb)
    if rb_subtree_gap(vma) < length:
        return -Errno.ENOMEM
    descending = 1
    while True:
        right = load(vma + VMA.rb_right)
        if load(vma + VMA.vm_end) > high - length or rb_subtree_gap(right) < length:
            descending = 0
        if descending:
            vma = right
            continue
        fit = gap_fits(vma, length, low, high)
        if fit == Gap.FITS:
            end = load(vma + VMA.vm_start)
            return (end if end < high else high) - length
        if fit == Gap.TOO_LOW:
            return -Errno.ENOMEM
        left = load(vma + VMA.rb_left)
        descending = rb_subtree_gap(left) >= length
        if descending:
            vma = left
            continue
        child = vma
        vma = load(vma + VMA.rb_parent)
        while vma != 0 and load(vma + VMA.rb_right) != child:
            child = vma
            vma = load(vma + VMA.rb_parent)
        if vma == 0:
            return -Errno.ENOMEM


@slowpath
def unmapped_area(cpu: int, mm: int, length: int, low: int, high: int) -> int:
    """Return the lowest free address for `length` bytes within [low, high), or -ENOMEM.

    Only asked when there is no room below mmap_base, so it simply goes through the VMAs.
    """
    addr = low
    vma = find_vma(cpu, mm, addr)
    while vma != 0 and vm_start_gap(vma) < addr + length:
        addr = load(vma + VMA.vm_end)
        vma = load(vma + VMA.vm_next)
    return addr if addr + length <= high else -Errno.ENOMEM


@kernel
def arch_get_unmapped_area_topdown(cpu: int, mm: int, addr: int, length: int) -> int:
    """Choose an address: the hint if it is free, else below mmap_base, else from the bottom."""
    task_size = load(mm + MM.task_size)
    if 0 < addr <= task_size - length:
        vma = find_vma(cpu, mm, addr)
        if vma == 0 or addr + length <= vm_start_gap(vma):
            return addr
    low = load(mm + MM.mmap_min_addr)
    addr = unmapped_area_topdown(cpu, mm, length, low, load(mm + MM.mmap_base))
    if addr >= 0:
        return addr
    return unmapped_area(cpu, mm, length, (task_size // 3) & PAGE_MASK, task_size)


@kernel
def thp_get_unmapped_area(cpu: int, mm: int, addr: int, length: int) -> int:
    """Choose an address; without a hint and for whole huge pages, one that is aligned to them.

    Source: __get_unmapped_area and mm/huge_memory.c: thp_get_unmapped_area_vmflags, which do so
    whether huge pages are in use or not.
    """
    if CONFIG_LINUX_VERSION >= MMAP_ALIGNS_TO_PMD and addr == 0 and length & (PMD_SIZE - 1) == 0:
        padded = arch_get_unmapped_area_topdown(cpu, mm, 0, length + PMD_SIZE)
        if padded >= 0:
            return (padded + PMD_SIZE) & -PMD_SIZE
    return arch_get_unmapped_area_topdown(cpu, mm, addr, length)


@kernel
def get_unmapped_area(cpu: int, mm: int, addr: int, length: int, flags: int, file: int) -> int:
    """Return the address for a mapping of `length` bytes, whole pages, or a negative errno.

    Only private anonymous memory is aligned to huge pages; shared memory has none by default.
    """
    task_size = load(mm + MM.task_size)
    if length > task_size:
        return -Errno.ENOMEM
    if (flags & Map.FIXED) == 0:
        if file == 0 and (flags & Map.SHARED) == 0:
            addr = thp_get_unmapped_area(cpu, mm, addr, length)
        else:
            addr = arch_get_unmapped_area_topdown(cpu, mm, addr, length)
        if addr < 0:
            return addr
    if addr < 0 or addr > task_size - length:
        return -Errno.ENOMEM
    if addr & ~PAGE_MASK:
        return -Errno.EINVAL
    if addr < load(mm + MM.mmap_min_addr):
        return -Errno.EPERM
    return addr


# Mapping.


@kernel
def do_mmap(
    cpu: int, mm: int, addr: int, length: int, prot: int, flags: int, file: int, pgoff: int
) -> int:
    """Map `length` bytes of `file` from page `pgoff` on, or (0) of anonymous memory.

    Returns the address or a negative errno.
    """
    if length == 0:
        return -Errno.EINVAL
    if flags & Map.FIXED_NOREPLACE:
        flags = flags | Map.FIXED
    if (flags & Map.FIXED) == 0:
        addr = round_hint_to_min(mm, addr)
    # a negative length is one of 2**63 bytes or more
    if length < 0 or length > load(mm + MM.task_size):
        return -Errno.ENOMEM
    length = page_align(length)
    if load(mm + MM.map_count) > DEFAULT_MAP_COUNT:
        return -Errno.ENOMEM
    addr = get_unmapped_area(cpu, mm, addr, length, flags, file)
    if addr < 0:
        return addr
    if flags & Map.FIXED_NOREPLACE:
        vma = find_vma(cpu, mm, addr)
        if vma != 0 and load(vma + VMA.vm_start) < addr + length:
            return -Errno.EEXIST
    vm_flags = calc_vm_prot_bits(prot) | calc_vm_flag_bits(flags) | VM_MAY_FLAGS
    vm_flags = vm_flags | load(mm + MM.def_flags)
    if flags & Map.LOCKED and can_do_mlock(mm) == 0:
        return -Errno.EPERM
    error = mlock_error(mm, vm_flags, length >> PAGE_SHIFT)
    if error != 0:
        return error
    if file != 0:
        error, vm_flags = file_map_flags(file, pgoff, length, prot, flags, vm_flags)
    else:
        error, vm_flags = anon_map_flags(flags, vm_flags)
        pgoff = 0 if vm_flags & Vm.SHARED else addr >> PAGE_SHIFT
    if error != 0:
        return error
    if (vm_flags & (Vm.WRITE | Vm.NORESERVE | Vm.SHARED)) == Vm.WRITE:
        # counts against the commit limit; here it only decides what can be merged
        vm_flags = vm_flags | Vm.ACCOUNT
    return mmap_region(cpu, mm, addr, length, vm_flags, file, pgoff)


@kernel
def mmap_populates(mm: int, flags: int) -> int:
    """Tell whether mmap with these flags touches all pages before it returns."""
    if (flags & Map.LOCKED) or (load(mm + MM.def_flags) & Vm.LOCKED):
        return 1
    return (flags & (Map.POPULATE | Map.NONBLOCK)) == Map.POPULATE


@kernel
def count_vma_pages_range(cpu: int, mm: int, addr: int, end: int) -> int:
    """Return how many pages of [addr, end) are mapped."""
    pages = 0
    vma = find_vma(cpu, mm, addr)
    while vma != 0 and load(vma + VMA.vm_start) < end:
        start = load(vma + VMA.vm_start)
        start = start if start > addr else addr
        stop = load(vma + VMA.vm_end)
        stop = stop if stop < end else end
        pages += (stop - start) >> PAGE_SHIFT
        vma = load(vma + VMA.vm_next)
    return pages


@kernel
def mmap_region(
    cpu: int, mm: int, addr: int, length: int, vm_flags: int, file: int, pgoff: int
) -> int:
    """Map [addr, addr + length), unmapping what is there; returns `addr` or a negative errno.

    The lock stays a write lock: between unmapping and mapping nobody may look.
    """
    pages = length >> PAGE_SHIFT
    if may_expand_vm(mm, vm_flags, pages) == 0:
        replaced = count_vma_pages_range(cpu, mm, addr, addr + length)
        if may_expand_vm(mm, vm_flags, pages - replaced) == 0:
            return -Errno.ENOMEM
    overlaps, prev = find_vma_links(mm, addr, addr + length)
    if overlaps:
        error = do_munmap(cpu, mm, addr, length, 0)
        if error < 0:
            return error
        overlaps, prev = find_vma_links(mm, addr, addr + length)
    error = vma_map(cpu, mm, prev, addr, addr + length, vm_flags, file, pgoff)
    return error if error < 0 else addr


@kernel
def vma_map(
    cpu: int, mm: int, prev: int, addr: int, end: int, vm_flags: int, file: int, pgoff: int
) -> int:
    """Merge the free range [addr, end) into a neighbour or make it a VMA; 0 or -ENOMEM."""
    error = 0
    if vma_merge(cpu, mm, prev, addr, end, vm_flags, 0, file, pgoff, 0) == 0:
        error = vma_map_new(cpu, mm, prev, addr, end, vm_flags, file, pgoff)
    if error == 0:
        vm_stat_account(mm, vm_flags, (end - addr) >> PAGE_SHIFT)
    return error


@kernel
def vma_map_new(
    cpu: int, mm: int, prev: int, addr: int, end: int, vm_flags: int, file: int, pgoff: int
) -> int:
    """Make the free range [addr, end) a VMA; 0 or -ENOMEM."""
    vma = vm_area_alloc(cpu, mm)
    if vma == 0:
        return -Errno.ENOMEM
    store(vma + VMA.vm_start, addr)
    store(vma + VMA.vm_end, end)
    store(vma + VMA.vm_flags, vm_flags)
    store(vma + VMA.vm_pgoff, pgoff)
    vma_set_file(vma, file)
    if file == 0 and vm_flags & Vm.SHARED:
        file = shmem_zero_setup(cpu, vma)
        if file == 0:
            vm_area_free(cpu, vma)
            return -Errno.ENOMEM
    if file != 0:
        store(vma + VMA.vm_ops, load(vma_mapping(vma) + ADDRESS_SPACE.i_fop))
    store(vma + VMA.vm_page_prot, vm_get_page_prot(vm_flags, load(vma + VMA.vm_ops)))
    # it may change again after it can be found (6.4.1, vma_link)
    vma_start_write(cpu, vma)
    vma_mark_attached(cpu, vma)
    vma_link(mm, vma, prev)
    vma_link_file(cpu, vma, 0)
    return 0


@kernel
def shmem_zero_setup(cpu: int, vma: int) -> int:
    """Give a shared anonymous VMA a file of its own; returns it, or 0 (mm/shmem.c)."""
    file = shmem_file_setup(cpu, load(vma + VMA.vm_end) - load(vma + VMA.vm_start))
    store(vma + VMA.vm_file, file)
    return file


# Unmapping.


@kernel
def do_munmap(cpu: int, mm: int, start: int, length: int, downgrade: int) -> int:
    """Unmap all pages of [start, start + length).

    Returns 0; 1 if the mmap lock was downgraded, which `downgrade` allows, and is now held for
    reading; or -EINVAL, -ENOMEM.  Source: __do_munmap.
    """
    task_size = load(mm + MM.task_size)
    if start & ~PAGE_MASK or start < 0 or start > task_size:
        return -Errno.EINVAL
    if length <= 0 or length > task_size - start:
        return -Errno.EINVAL
    end = start + page_align(length)
    vma = find_vma_intersection(cpu, mm, start, end)
    if vma == 0:
        return 0
    prev = load(vma + VMA.vm_prev)
    if load(vma + VMA.vm_start) < start:
        if end < load(vma + VMA.vm_end) and load(mm + MM.map_count) >= DEFAULT_MAP_COUNT:
            return -Errno.ENOMEM
        error = __split_vma(cpu, mm, vma, start, 0)
        if error != 0:
            return error
        prev = vma
    last = find_vma(cpu, mm, end)
    if last != 0 and load(last + VMA.vm_start) < end:
        error = __split_vma(cpu, mm, last, end, 1)
        if error != 0:
            return error
    vma = load(prev + VMA.vm_next) if prev != 0 else load(mm + MM.mmap)
    complete_munmap(cpu, mm, vma, prev, end, downgrade)
    return 1 if downgrade else 0


@kernel
def complete_munmap(cpu: int, mm: int, vma: int, prev: int, end: int, downgrade: int) -> None:
    """Detach whole VMAs from `vma` on up to `end`, zap what they map and free them.

    Once they are detached and the lock is a read lock, faults go on elsewhere in the mm; none can
    reach the detached VMAs, except a speculative one that the sequence count will stop.
    """
    vmas_start_write(cpu, vma, end)
    following = detach_vmas_to_be_unmapped(mm, vma, prev, end)
    vmas_mark_detached(cpu, vma)
    prev_end = load(prev + VMA.vm_end) if prev != 0 else 0
    next_start = load(following + VMA.vm_start) if following != 0 else 0
    if downgrade:
        mmap_write_downgrade(cpu, mm)
    unmap_region(cpu, mm, vma, prev_end, next_start)
    remove_vma_list(cpu, mm, vma)


@kernel
def remove_vma_list(cpu: int, mm: int, vma: int) -> None:
    """Free detached VMAs.

    The accounts are safe under the downgraded lock too: no other writer gets in beside its holder.
    """
    while vma != 0:
        following = load(vma + VMA.vm_next)
        vm_stat_account(mm, load(vma + VMA.vm_flags), -vma_pages(vma))
        vm_area_free(cpu, vma)
        vma = following


# The heap.


@kernel
def do_brk_grow(cpu: int, mm: int, old_end: int, new_end: int) -> int:
    """Map [old_end, new_end) at the end of the heap; 0 or -ENOMEM.  Source: do_brk_flags.

    A page must stay free between the heap and the next mapping.
    """
    vm_flags = VM_DATA_FLAGS | load(mm + MM.def_flags)
    pages = (new_end - old_end) >> PAGE_SHIFT
    overlaps, prev = find_vma_links(mm, old_end, new_end + PAGE_SIZE)
    following = find_vma(cpu, mm, old_end)
    if overlaps or (following != 0 and vm_start_gap(following) < new_end + PAGE_SIZE):
        return -Errno.ENOMEM
    if load(mm + MM.map_count) > DEFAULT_MAP_COUNT or may_expand_vm(mm, vm_flags, pages) == 0:
        return -Errno.ENOMEM
    error = mlock_error(mm, vm_flags, pages)
    if error != 0:
        return error
    return vma_map(cpu, mm, prev, old_end, new_end, vm_flags, 0, old_end >> PAGE_SHIFT)


@kernel
def do_brk(cpu: int, mm: int, brk: int) -> int:
    """Move the end of the heap to `brk`, at or above start_brk.

    Returns 0, 1 if the mmap lock was downgraded, or -ENOMEM, -EINVAL with the heap as it was.
    """
    old_brk = load(mm + MM.brk)
    old_end = page_align(old_brk)
    new_end = page_align(brk)
    result = 0
    if new_end > old_end:
        result = do_brk_grow(cpu, mm, old_end, new_end)
    elif new_end < old_end and CONFIG_LINUX_VERSION >= BRK_NEEDS_A_MAPPING:
        vma = find_vma_intersection(cpu, mm, new_end, old_end)
        if vma == 0:
            return -Errno.EINVAL
    # set before the lock may be downgraded, because then others can read it
    if result == 0:
        store(mm + MM.brk, brk)
    if new_end < old_end:
        result = do_munmap(cpu, mm, new_end, old_end - new_end, 1)
        if result < 0:
            store(mm + MM.brk, old_brk)
    return result
