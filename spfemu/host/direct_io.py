# SPDX-License-Identifier: MIT
"""Direct I/O on the host: vmsplice pins the buffer's pages into a pipe, which is emptied again.

The kernel takes the pages by get_user_pages_fast.  There is no device: stores go through the
mapping, and what is in the pipe goes to /dev/null.
"""

import platform

from spfemu.kernel import kernel
from spfemu.layout import CPU, GUP_PAGES, PAGE_SHIFT, WORD
from spfemu.mm.flags import Errno
from spfemu.primitives import load, raw_syscall, store, write_once

_X86 = platform.machine() == "x86_64"
NR_PIPE2 = 293 if _X86 else 59
NR_OPENAT = 257 if _X86 else 56
NR_SPLICE = 275 if _X86 else 76
NR_VMSPLICE = 278 if _X86 else 75
AT_FDCWD = -100
O_WRONLY = 1
NULL_NAME = int.from_bytes(b"/dev/nul", "little")
NULL_NAME_END = ord("l")
ADDRESS = CPU.gup_pages
"""What vmsplice is told, a struct iovec: address and length."""
LENGTH = CPU.gup_pages + 1 * WORD
PIPE = CPU.gup_pages + 2 * WORD
"""Both ends, 32 bits each; 0 before the first I/O."""
NULL_FD = CPU.gup_pages + 3 * WORD
NAME = CPU.gup_pages + 4 * WORD
LOW = (1 << 32) - 1


@kernel
def bio_map_user(cpu: int, address: int, nr_pages: int) -> int:
    """Pin the pages of a buffer; how many, or a negative errno."""
    if nr_pages > GUP_PAGES:
        return -Errno.EINVAL
    if load(cpu + PIPE) == 0:
        error = open_pipe(cpu)
        if error < 0:
            return error
    store(cpu + ADDRESS, address)
    store(cpu + LENGTH, nr_pages << PAGE_SHIFT)
    result = raw_syscall(NR_VMSPLICE, load(cpu + PIPE) >> 32, cpu + ADDRESS, 1, 0, 0, 0)
    if result > 0:
        store(cpu + CPU.gup_nr, result >> PAGE_SHIFT)
        return result >> PAGE_SHIFT
    return result


@kernel
def open_pipe(cpu: int) -> int:
    """Make the pipe of this worker, and what empties it; 0 or a negative errno."""
    store(cpu + NAME, NULL_NAME)
    store(cpu + NAME + WORD, NULL_NAME_END)
    fd = raw_syscall(NR_OPENAT, AT_FDCWD, cpu + NAME, O_WRONLY, 0, 0, 0)
    if fd < 0:
        return fd
    store(cpu + NULL_FD, fd)
    return raw_syscall(NR_PIPE2, cpu + PIPE, 0, 0, 0, 0, 0)


@kernel
def dma_write(cpu: int, index: int, value: int) -> None:
    """Store a word at the begin of one of the pages."""
    write_once(load(cpu + ADDRESS) + (index << PAGE_SHIFT), value)


@kernel
def bio_release_pages(cpu: int) -> None:
    """Empty the pipe, which unpins the pages."""
    left = load(cpu + CPU.gup_nr) << PAGE_SHIFT
    while left > 0:
        fd = load(cpu + PIPE) & LOW
        moved = raw_syscall(NR_SPLICE, fd, 0, load(cpu + NULL_FD), 0, left, 0)
        if moved <= 0:
            break
        left -= moved
    store(cpu + CPU.gup_nr, 0)
