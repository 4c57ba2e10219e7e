# SPDX-License-Identifier: MIT
"""System calls on the contents of files: length, words, writing back (Linux 6.18)."""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, CPU, FILE, MM, PAGE_MASK, PAGE_SHIFT, VMA, WORD
from spfemu.mm.file_table import fput, get_file
from spfemu.mm.filemap import (
    S_MAXBYTES,
    find_get_page,
    grab_cache_page,
    set_page_dirty,
    wait_on_page_uptodate,
)
from spfemu.mm.flags import Errno, Fmode, Msync, Vm
from spfemu.mm.memory import linear_page_index
from spfemu.mm.mmap import page_align
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from spfemu.mm.page_alloc import page_address, put_page
from spfemu.mm.page_lock import unlock_page
from spfemu.mm.rwsem import down_write, up_write
from spfemu.mm.syscalls import syscall_result
from spfemu.mm.truncate import truncate_setsize
from spfemu.mm.vma import find_vma_intersection
from spfemu.mm.vmstat import count_vm_event
from spfemu.mm.writeback import filemap_write_and_wait_range
from spfemu.primitives import load, read_once, write_once

MSYNC_FLAGS = int(Msync.ASYNC | Msync.INVALIDATE | Msync.SYNC)


@kernel
def sys_ftruncate(cpu: int, file: int, size: int) -> int:
    """Set the length of a file [bytes]; 0, -EINVAL, or -EFBIG beyond what the cache can hold."""
    count_vm_event(cpu, Event.CALL_FTRUNCATE)
    if size < 0 or (load(file + FILE.f_mode) & Fmode.WRITE) == 0:
        return syscall_result(cpu, -Errno.EINVAL)
    if size > S_MAXBYTES:
        return syscall_result(cpu, -Errno.EFBIG)
    mapping = load(file + FILE.f_mapping)
    down_write(cpu, mapping + ADDRESS_SPACE.i_rwsem)
    truncate_setsize(cpu, mapping, size)
    up_write(cpu, mapping + ADDRESS_SPACE.i_rwsem)
    return 0


@slowpath
def sys_pwrite(cpu: int, file: int, offset: int, value: int) -> int:
    """Write the word at `offset` [bytes, whole words]; the file grows if need be.  0 or -ENOMEM.

    Source: generic_perform_write.
    """
    mapping = load(file + FILE.f_mapping)
    down_write(cpu, mapping + ADDRESS_SPACE.i_rwsem)
    if offset + WORD > load(mapping + ADDRESS_SPACE.i_size):
        truncate_setsize(cpu, mapping, offset + WORD)
    page = grab_cache_page(cpu, mapping, offset >> PAGE_SHIFT)
    if page != 0:
        write_once(page_address(cpu, page) + (offset & ~PAGE_MASK), value)
        set_page_dirty(page)
        unlock_page(page)
        put_page(cpu, page)
    up_write(cpu, mapping + ADDRESS_SPACE.i_rwsem)
    return 0 if page != 0 else -Errno.ENOMEM


@slowpath
def sys_pread(cpu: int, file: int, offset: int) -> int:
    """Read the word at `offset` [bytes, whole words]; 0 beyond the end."""
    mapping = load(file + FILE.f_mapping)
    page = 0
    if offset < read_once(mapping + ADDRESS_SPACE.i_size):
        page = find_get_page(cpu, mapping, offset >> PAGE_SHIFT)
    if page == 0:
        return 0
    wait_on_page_uptodate(cpu, page)
    value = read_once(page_address(cpu, page) + (offset & ~PAGE_MASK))
    put_page(cpu, page)
    return value


@kernel
def sys_msync(cpu: int, start: int, length: int, flags: int) -> int:
    """Write back what a range maps (MS_SYNC); 0 or a negative errno (mm/msync.c)."""
    count_vm_event(cpu, Event.CALL_MSYNC)
    both = Msync.ASYNC | Msync.SYNC
    if flags & ~MSYNC_FLAGS or start & ~PAGE_MASK or flags & both == both:
        return syscall_result(cpu, -Errno.EINVAL)
    length = page_align(length)
    if length == 0:
        return 0
    mm = load(cpu + CPU.mm)
    limit = load(mm + MM.task_size)
    end = start + length
    # beyond user space there is nothing; a negative number is an unsigned one from 2**63 on
    if start < 0 or start > limit or (length < 0 and end >= 0):
        return syscall_result(cpu, -Errno.ENOMEM)
    end = end if 0 <= end <= limit else limit + 1
    return syscall_result(cpu, do_msync(cpu, mm, start, end, flags))


@slowpath
def do_msync(cpu: int, mm: int, start: int, end: int, flags: int) -> int:
    """Do so; -ENOMEM for holes comes after the rest is done.

    The mmap lock is released while a file is written back.
    """
    unmapped = 0
    while start < end:
        mmap_read_lock(cpu, mm)
        vma = find_vma_intersection(cpu, mm, start, end)
        if vma == 0:
            mmap_read_unlock(cpu, mm)
            return -Errno.ENOMEM
        if load(vma + VMA.vm_start) > start:
            unmapped = -Errno.ENOMEM
            start = load(vma + VMA.vm_start)
        vm_flags = load(vma + VMA.vm_flags)
        stop = load(vma + VMA.vm_end)
        first = linear_page_index(vma, start)
        file = load(vma + VMA.vm_file)
        locked = flags & Msync.INVALIDATE and vm_flags & Vm.LOCKED
        writes = locked == 0 and file != 0 and flags & Msync.SYNC and vm_flags & Vm.SHARED
        if writes:
            get_file(file)
        mmap_read_unlock(cpu, mm)
        if locked:
            return -Errno.EBUSY
        stop = stop if stop < end else end
        if writes:
            last = first + ((stop - start) >> PAGE_SHIFT) - 1
            filemap_write_and_wait_range(cpu, load(file + FILE.f_mapping), first, last)
            fput(cpu, file)
        start = stop
    return unmapped
