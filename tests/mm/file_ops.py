# SPDX-License-Identifier: MIT
"""Loops of real CPUs on one file: some touch what is mapped, others cut it, clean it, map it anew.

Every page of the file holds its number plus one in its first word, or zero after it has been cut
away and grown again.  A touch may find that, or what its own CPU has written to a private copy, or
that there is nothing (SIGBUS), but never another page's.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SHIFT
from spfemu.mm.file_calls import sys_ftruncate, sys_msync
from spfemu.mm.flags import Errno, Madv, Map, Msync, Prot
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.sched import cond_resched
from spfemu.mm.syscalls import sys_madvise, sys_mmap_file
from spfemu.primitives import load

READ_WRITE = int(Prot.READ | Prot.WRITE)


@kernel
def touch_file(cpu: int, area: int, pages: int, rounds: int, write: int) -> int:
    """Read or write every page, again and again; returns 0, or the index of a wrong page plus 1.

    A write stores what the page of the file holds anyway.
    """
    for _ in range(rounds):
        for index in range(pages):
            address = area + (index << PAGE_SHIFT)
            value = 0
            error = 0
            if write:
                error = user_write(cpu, address, index + 1)
            else:
                error, value = user_read(cpu, address)
            if error != 0 and error != -Errno.EIO:
                return -error
            if error == 0 and write == 0 and value != 0 and value != index + 1:
                return index + 1
            cond_resched(cpu)
    return 0


@kernel
def cut_file(cpu: int, file: int, pages: int, rounds: int) -> int:
    """Cut the file to half its length and let it grow again, with other lengths between."""
    for i in range(rounds):
        sys_ftruncate(cpu, file, ((i & 7) * pages >> 4) << PAGE_SHIFT)
        sys_ftruncate(cpu, file, pages << PAGE_SHIFT)
        cond_resched(cpu)
    return 0


@kernel
def clean_file(cpu: int, area: int, pages: int, rounds: int) -> int:
    """Write the file back, and drop a page of what is mapped, again and again."""
    length = pages << PAGE_SHIFT
    for i in range(rounds):
        sys_msync(cpu, area, length, Msync.SYNC)
        sys_madvise(cpu, area + ((i & 31) << PAGE_SHIFT), 1 << PAGE_SHIFT, Madv.DONTNEED)
        cond_resched(cpu)
    return 0


@kernel
def remap_file(cpu: int, area: int, pages: int, rounds: int, file: int, shared: int) -> int:
    """Map the file over itself again and again; 0, or 1 if that failed."""
    flags = Map.FIXED | Map.SHARED if shared else Map.FIXED | Map.PRIVATE
    for _ in range(rounds):
        if sys_mmap_file(cpu, area, pages << PAGE_SHIFT, READ_WRITE, flags, file, 0) != area:
            return 1
        cond_resched(cpu)
    return load(cpu + CPU.failed)
