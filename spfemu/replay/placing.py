# SPDX-License-Identifier: MIT
"""Kernel functions with which a replay puts mappings where they were, and touches them.

Nobody else runs meanwhile.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.flags import Errno
from spfemu.mm.limits import vm_stat_account
from spfemu.mm.mmap import get_unmapped_area, page_align, round_hint_to_min, vma_map_new
from spfemu.mm.mmap_lock import mmap_write_lock, mmap_write_unlock
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.vma import find_vma_links
from spfemu.primitives import load


@kernel
def place_mapping(cpu: int, start: int, end: int, vm_flags: int, file: int, pgoff: int) -> int:
    """Map [start, end) as execve has left it, merged with nothing; 0 or a negative errno."""
    mm = load(cpu + CPU.mm)
    mmap_write_lock(cpu, mm)
    overlaps, prev = find_vma_links(mm, start, end)
    error = -Errno.EEXIST
    if overlaps == 0:
        error = vma_map_new(cpu, mm, prev, start, end, vm_flags, file, pgoff)
    if error == 0:
        vm_stat_account(mm, vm_flags, (end - start) >> PAGE_SHIFT)
    mmap_write_unlock(cpu, mm)
    return error


@kernel
def choose_address(cpu: int, addr: int, length: int, flags: int, file: int) -> int:
    """Return where mmap would put a mapping, or a negative errno; nothing is mapped."""
    mm = load(cpu + CPU.mm)
    if length <= 0:
        return -Errno.EINVAL
    # before it is rounded up, which could make it negative
    if length > load(mm + MM.task_size):
        return -Errno.ENOMEM
    mmap_write_lock(cpu, mm)
    hint = round_hint_to_min(mm, addr)
    chosen = get_unmapped_area(cpu, mm, hint, page_align(length), flags, file)
    mmap_write_unlock(cpu, mm)
    return chosen


@kernel
def touch_pages(cpu: int, start: int, end: int, write: int) -> int:
    """Write or read a word of every page of [start, end); returns how many could not be.

    Once there is no frame left it does not try the rest.
    """
    failed = 0
    address = start
    while address < end:
        if write:
            result = user_write(cpu, address, address)
        else:
            result, _value = user_read(cpu, address)
        if result == -Errno.ENOMEM:
            return failed + ((end - address + PAGE_SIZE - 1) >> PAGE_SHIFT)
        failed += result < 0
        address += PAGE_SIZE
    return failed
