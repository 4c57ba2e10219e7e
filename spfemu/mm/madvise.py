# SPDX-License-Identifier: MIT
"""Advice about memory (Linux 6.18, mm/madvise.c).

Advice that only tells reclaim what to take first (FREE, COLD, PAGEOUT, WILLNEED) is checked and
then has nothing to do: no page of a private anonymous mapping is ever taken away here.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, PAGE_MASK, VMA
from spfemu.mm.flags import Errno, Madv, Vm
from spfemu.mm.mmap import page_align, range_wraps
from spfemu.mm.vma import find_vma
from spfemu.mm.vma_modify import vm_flags_reset, vma_modify_flags
from spfemu.mm.zap import zap_page_range
from spfemu.primitives import load


@kernel
def madvise_behavior_valid(advice: int) -> int:
    """Tell whether there is such advice."""
    if advice == Madv.MERGEABLE or advice == Madv.UNMERGEABLE or advice == Madv.REMOVE:
        return 0
    return Madv.NORMAL <= advice <= Madv.DONTNEED or Madv.FREE <= advice <= Madv.DONTNEED_LOCKED


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
        return 0, vma
    if vm_flags & Vm.LOCKED and advice != Madv.DONTNEED_LOCKED:
        return -Errno.EINVAL, vma
    if advice == Madv.DONTNEED or advice == Madv.DONTNEED_LOCKED:
        zap_page_range(cpu, vma, start, end)
    elif advice == Madv.FREE and load(vma + VMA.vm_ops) != 0:
        return -Errno.EINVAL, vma
    return 0, vma


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
