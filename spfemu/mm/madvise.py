# SPDX-License-Identifier: MIT
"""Advice about memory (Linux 6.18, mm/madvise.c).

What tells reclaim what to take first is in reclaim_advice.py.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import FILE, MM, PAGE_MASK, PAGE_SHIFT, VMA
from spfemu.mm.file_table import fput, get_file
from spfemu.mm.filemap import page_cache_ra, page_cache_size
from spfemu.mm.flags import Errno, FileOps, Madv, Vm
from spfemu.mm.i_mmap import vma_mapping
from spfemu.mm.memory import linear_page_index
from spfemu.mm.mmap import page_align, range_wraps
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from spfemu.mm.reclaim_advice import madvise_reclaim
from spfemu.mm.truncate import punch_hole
from spfemu.mm.vma import find_vma, find_vma_intersection
from spfemu.mm.vma_modify import vm_flags_reset, vma_modify_flags
from spfemu.mm.zap import zap_page_range
from spfemu.primitives import load


@kernel
def madvise_behavior_valid(advice: int) -> int:
    """Tell whether there is such advice."""
    if advice == Madv.MERGEABLE or advice == Madv.UNMERGEABLE:
        return 0
    return Madv.NORMAL <= advice <= Madv.DONTNEED or Madv.FREE <= advice <= Madv.COLLAPSE


@kernel
def madvise_need_mmap_write(advice: int) -> int:
    """Tell whether the advice changes VMAs, for which the mmap lock is held for writing."""
    if advice == Madv.DONTNEED or advice == Madv.DONTNEED_LOCKED or advice == Madv.WILLNEED:
        return 0
    return advice != Madv.FREE and advice != Madv.COLD and advice != Madv.PAGEOUT


@kernel
def madvise_check(start: int, length: int, advice: int) -> int:
    """Check what needs no lock: 0, or -EINVAL."""
    if madvise_behavior_valid(advice) == 0 or start & ~PAGE_MASK:
        return -Errno.EINVAL
    return -Errno.EINVAL if length != 0 and range_wraps(start, length) else 0


@kernel
def madvise_range_end(mm: int, start: int, length: int) -> int:
    """Return the end of a range that does not wrap; beyond the address space it is cut."""
    limit = load(mm + MM.task_size)
    return start + page_align(length if 0 <= length < limit else limit)


@kernel
def do_madvise(cpu: int, mm: int, start: int, end: int, advice: int) -> int:
    """Follow the advice in all that is mapped of [start, end); 0 or a negative errno.

    -ENOMEM for holes comes after the rest is done.  Needs the mmap lock as
    `madvise_need_mmap_write` says.
    """
    if start < 0 or start >= load(mm + MM.task_size):
        return -Errno.ENOMEM
    result = 0
    vma = find_vma(cpu, mm, start)
    prev = 0
    if vma != 0:
        prev = vma if load(vma + VMA.vm_start) < start else load(vma + VMA.vm_prev)
    while start < end:
        if vma == 0:
            return -Errno.ENOMEM
        if start < load(vma + VMA.vm_start):
            result = -Errno.ENOMEM
            start = load(vma + VMA.vm_start)
            if start >= end:
                return result
        part_end = load(vma + VMA.vm_end)
        part_end = part_end if part_end < end else end
        error, prev = madvise_vma_behavior(cpu, mm, vma, prev, start, part_end, advice)
        if error != 0:
            return error
        start = part_end
        vma = prev
        if load(prev + VMA.vm_end) <= start:
            vma = load(prev + VMA.vm_next)
    return result


@kernel
def madvise_vma_behavior(
    cpu: int, mm: int, vma: int, prev: int, start: int, end: int, advice: int
) -> tuple[int, int]:
    """Follow the advice in [start, end), part of `vma`; (0 or a negative errno, the VMA there)."""
    vm_flags = load(vma + VMA.vm_flags)
    if madvise_need_mmap_write(advice):
        error, vm_flags = madvise_new_flags(vma, vm_flags, advice)
        if error != 0:
            return error, vma
        error, vma = madvise_update_vma(cpu, mm, vma, prev, start, end, vm_flags)
        return error, vma
    if advice == Madv.WILLNEED:
        madvise_willneed(cpu, vma, start, end)
        return 0, vma
    if vm_flags & Vm.LOCKED and advice != Madv.DONTNEED_LOCKED:
        return -Errno.EINVAL, vma
    if advice == Madv.DONTNEED or advice == Madv.DONTNEED_LOCKED:
        zap_page_range(cpu, vma, start, end)
    elif advice == Madv.FREE and load(vma + VMA.vm_ops) != 0:
        return -Errno.EINVAL, vma
    else:
        madvise_reclaim(cpu, vma, start, end, advice)
    return 0, vma


@kernel
def madvise_willneed(cpu: int, vma: int, start: int, end: int) -> None:
    """Read what [start, end), part of `vma`, maps of a file or, anonymous, has swapped out."""
    if load(vma + VMA.vm_ops) == 0:
        madvise_reclaim(cpu, vma, start, end, Madv.WILLNEED)
    elif load(vma + VMA.vm_ops) == FileOps.GENERIC:
        mapping = vma_mapping(vma)
        first = linear_page_index(vma, start)
        last = first + ((end - start) >> PAGE_SHIFT)
        size = page_cache_size(mapping)
        page_cache_ra(cpu, mapping, first, last if last < size else size)


@slowpath
def madvise_remove(cpu: int, mm: int, start: int, end: int) -> int:
    """Make what is mapped of files in [start, end) holes; 0 or a negative errno.

    The mmap lock is not held while a file is changed, only a reference to it.
    """
    result = 0
    while start < end:
        mmap_read_lock(cpu, mm)
        vma = find_vma_intersection(cpu, mm, start, end)
        if vma == 0:
            mmap_read_unlock(cpu, mm)
            return -Errno.ENOMEM
        if load(vma + VMA.vm_start) > start:
            result = -Errno.ENOMEM
            start = load(vma + VMA.vm_start)
        stop = load(vma + VMA.vm_end)
        stop = stop if stop < end else end
        error = madvise_remove_check(vma)
        file = load(vma + VMA.vm_file)
        first = linear_page_index(vma, start)
        if error == 0:
            get_file(file)
        mmap_read_unlock(cpu, mm)
        if error != 0:
            return error
        last = first + ((stop - start) >> PAGE_SHIFT) - 1
        punch_hole(cpu, load(file + FILE.f_mapping), first, last)
        fput(cpu, file)
        start = stop
    return result


@kernel
def madvise_remove_check(vma: int) -> int:
    """Tell whether pages of a file may be removed through `vma`: 0, -EINVAL or -EACCES."""
    vm_flags = load(vma + VMA.vm_flags)
    if vm_flags & Vm.LOCKED or load(vma + VMA.vm_file) == 0:
        return -Errno.EINVAL
    both = Vm.SHARED | Vm.MAYWRITE
    return 0 if vm_flags & both == both else -Errno.EACCES


@kernel
def madvise_new_flags(vma: int, vm_flags: int, advice: int) -> tuple[int, int]:
    """Return (0, the VMA's flags with the advice), or (-EINVAL, 0) if it does not fit the VMA."""
    if advice == Madv.NORMAL:
        return 0, vm_flags & ~(Vm.RAND_READ | Vm.SEQ_READ)
    if advice == Madv.SEQUENTIAL:
        return 0, (vm_flags & ~Vm.RAND_READ) | Vm.SEQ_READ
    if advice == Madv.RANDOM:
        return 0, (vm_flags & ~Vm.SEQ_READ) | Vm.RAND_READ
    if advice == Madv.DONTFORK:
        return 0, vm_flags | Vm.DONTCOPY
    if advice == Madv.DOFORK:
        return 0, vm_flags & ~Vm.DONTCOPY
    if advice == Madv.WIPEONFORK:
        if load(vma + VMA.vm_file) != 0 or vm_flags & Vm.SHARED:
            return -Errno.EINVAL, 0
        return 0, vm_flags | Vm.WIPEONFORK
    if advice == Madv.KEEPONFORK:
        return 0, vm_flags & ~Vm.WIPEONFORK
    if advice == Madv.DONTDUMP:
        return 0, vm_flags | Vm.DONTDUMP
    if advice == Madv.DODUMP:
        return 0, vm_flags & ~Vm.DONTDUMP
    if advice == Madv.HUGEPAGE:
        return 0, (vm_flags & ~Vm.NOHUGEPAGE) | Vm.HUGEPAGE
    if advice == Madv.NOHUGEPAGE:
        return 0, (vm_flags & ~Vm.HUGEPAGE) | Vm.NOHUGEPAGE
    return -Errno.EINVAL, 0


@kernel
def madvise_update_vma(
    cpu: int, mm: int, vma: int, prev: int, start: int, end: int, vm_flags: int
) -> tuple[int, int]:
    """Give [start, end), part of `vma`, new flags; (0, the VMA there) or (-EAGAIN, 0)."""
    if load(vma + VMA.vm_flags) == vm_flags:
        return 0, vma
    error, vma = vma_modify_flags(cpu, mm, prev, vma, start, end, vm_flags)
    if error != 0:
        return -Errno.EAGAIN, 0
    vm_flags_reset(cpu, vma, vm_flags)
    return 0, vma
