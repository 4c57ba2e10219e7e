# SPDX-License-Identifier: MIT
"""Advice about memory (Linux 5.12, mm/madvise.c): MADV_DONTNEED."""

from spfemu.kernel import kernel
from spfemu.layout import MM, PAGE_MASK, VMA
from spfemu.mm.flags import Errno, Madv
from spfemu.mm.mmap import page_align, range_wraps
from spfemu.mm.vma import find_vma
from spfemu.mm.zap import zap_page_range
from spfemu.primitives import load


@kernel
def madvise_check(start: int, length: int, advice: int) -> int:
    """Check what needs no lock: 0, or -EINVAL."""
    if advice != Madv.DONTNEED or start & ~PAGE_MASK:
        return -Errno.EINVAL
    return -Errno.EINVAL if length != 0 and range_wraps(start, length) else 0


@kernel
def do_madvise(cpu: int, mm: int, start: int, length: int) -> int:
    """Drop the pages of [start, start + length); 0, or -ENOMEM after doing all that is mapped.

    Needs the mmap lock for reading: VMAs and page tables stay.
    """
    limit = load(mm + MM.task_size)
    if start < 0 or start >= limit:
        return -Errno.ENOMEM
    end = start + page_align(length if 0 <= length < limit else limit)
    result = 0
    vma = find_vma(cpu, mm, start)
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
        zap_page_range(cpu, vma, start, part_end)
        start = part_end
        vma = load(vma + VMA.vm_next)
    return result
