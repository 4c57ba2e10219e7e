# SPDX-License-Identifier: MIT
"""Start threads and load libraries, each touched a little: the launch of an Android app.

After what bionic does.  For each of `areas` threads, 8: reserve a stack of `size` bytes, 1 MiB,
and a guard page, allow all but the guard; map a signal stack and forbid its lowest page; write to
the top `pages` pages of the stack, 4.  Then load a library: reserve its range, map its segments
into it, write data (relocations), protect the half of it that is not written any more, read code,
write bss, `pages` pages of each.  In the end all is unmapped, so that it can be repeated.  Code and
data are private mappings of a file, one for the process.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE, WORD
from spfemu.mm.flags import Errno, Map, Prot
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.syscalls import sys_mmap, sys_mmap_file, sys_mprotect, sys_munmap
from spfemu.primitives import load, store
from spfemu.workloads.common import (
    ANONYMOUS,
    READ_WRITE,
    create_own_file,
    map_anonymous,
    pages_of,
    read_pages,
    write_pages,
)
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=1 << 20, areas=8, pages=4)
RESERVE = ANONYMOUS | int(Map.NORESERVE)
SEGMENT = int(Map.PRIVATE | Map.FIXED)
READ_EXEC = int(Prot.READ | Prot.EXEC)
SIGNAL_STACK = 32 << 10
PREVIOUS, SIGNAL, LOADED = WORD, 2 * WORD, 3 * WORD
"""Distance from the top of a stack to the words that say what has to be unmapped [bytes]."""
CODE, DATA, BSS = 16, 2, 2
"""Segments of a library, by what is touched of each."""
LIBRARY = CODE + DATA + BSS


def needs(parameters: Parameters) -> Needs:
    """Four mappings and nine VMAs per thread; each of four places touched; a file per process."""
    workers = parameters.workers
    threads = parameters.areas * workers
    pages = (4 * parameters.pages + 1) * threads
    library = (CODE + DATA) * parameters.pages
    files = workers * (library + library // 512 + 4)
    frames = pages + files + table_frames(pages, 4 * threads)
    return Needs(frames, 9 * threads, files=workers, cached=files)


def iterations(parameters: Parameters) -> int:
    """Threads started."""
    return parameters.areas


@kernel
def workload_setup(cpu: int) -> int:
    """Make the library's file if this is the first worker of the mm, else take the one it made."""
    leader = load(cpu + Param.LEADER)
    if leader == cpu:
        return create_own_file(cpu, (CODE + DATA) * touched(cpu))
    store(cpu + State.FILE, load(leader + State.FILE))
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Start all threads, then end all."""
    stack = 0
    for _thread in range(load(cpu + Param.AREAS)):
        previous = stack
        stack = start_thread(cpu, previous)
        if stack < 0:
            return stack
    while stack != 0:
        stack = end_thread(cpu, stack)
        if stack < 0:
            return stack
    return 0


@kernel
def touched(cpu: int) -> int:
    """Bytes touched in each place."""
    return load(cpu + Param.PAGES) << PAGE_SHIFT


@kernel
def stack_length(cpu: int) -> int:
    """Length of a stack without its guard page."""
    return pages_of(load(cpu + Param.SIZE)) << PAGE_SHIFT


@kernel
def start_thread(cpu: int, previous: int) -> int:
    """Map stacks and a library for a thread, and note them; address of its stack or -errno."""
    stack = map_stack(cpu)
    if stack < 0:
        return stack
    signal_stack = map_signal_stack(cpu)
    if signal_stack < 0:
        return signal_stack
    top = stack + stack_length(cpu)
    result = write_pages(cpu, top - touched(cpu), top)
    if result < 0:
        return result
    library = load_library(cpu)
    if library < 0:
        return library
    result = user_write(cpu, top - PREVIOUS, previous)
    if result == 0:
        result = user_write(cpu, top - SIGNAL, signal_stack)
    if result == 0:
        result = user_write(cpu, top - LOADED, library)
    return stack if result == 0 else result


@kernel
def map_stack(cpu: int) -> int:
    """Reserve a stack and its guard page, allow the stack; its address or -errno."""
    length = stack_length(cpu)
    area = sys_mmap(cpu, 0, PAGE_SIZE + length, Prot.NONE, RESERVE)
    if area < 0:
        return area
    result = sys_mprotect(cpu, area + PAGE_SIZE, length, READ_WRITE)
    return result if result < 0 else area + PAGE_SIZE


@kernel
def map_signal_stack(cpu: int) -> int:
    """Map a signal stack and forbid its lowest page; its address or -errno."""
    area = map_anonymous(cpu, SIGNAL_STACK)
    if area < 0:
        return area
    result = sys_mprotect(cpu, area, PAGE_SIZE, Prot.NONE)
    return result if result < 0 else area


@kernel
def load_library(cpu: int) -> int:
    """Map a library and touch it as its loader and its first caller do; its address or -errno."""
    unit = touched(cpu)
    library = sys_mmap(cpu, 0, LIBRARY * unit, Prot.NONE, RESERVE)
    if library < 0:
        return library
    data = library + CODE * unit
    bss = data + DATA * unit
    result = map_segment(cpu, library, CODE * unit, READ_EXEC, 0)
    if result == 0:
        result = map_segment(cpu, data, DATA * unit, READ_WRITE, CODE * unit)
    if result == 0:
        result = placed(bss, sys_mmap(cpu, bss, BSS * unit, READ_WRITE, SEGMENT | Map.ANONYMOUS))
    if result == 0:
        result = write_pages(cpu, data, data + unit)
    if result == 0:
        result = sys_mprotect(cpu, data, unit, Prot.READ)
    if result == 0:
        result = read_pages(cpu, library, library + unit)
    if result == 0:
        result = write_pages(cpu, bss, bss + unit)
    return library if result == 0 else result


@kernel
def map_segment(cpu: int, address: int, length: int, prot: int, offset: int) -> int:
    """Map a part of the library's file into the reserved range; 0 or -errno."""
    file = load(cpu + State.FILE)
    return placed(address, sys_mmap_file(cpu, address, length, prot, SEGMENT, file, offset))


@kernel
def placed(address: int, result: int) -> int:
    """Turn what mmap returned into 0 if it is `address`, else -errno."""
    if result < 0:
        return result
    return 0 if result == address else -Errno.EFAULT


@kernel
def end_thread(cpu: int, stack: int) -> int:
    """Unmap all that a thread has; the stack of the thread started before it, 0, or -errno."""
    top = stack + stack_length(cpu)
    result, previous = user_read(cpu, top - PREVIOUS)
    if result < 0:
        return result
    result, signal_stack = user_read(cpu, top - SIGNAL)
    if result < 0:
        return result
    result, library = user_read(cpu, top - LOADED)
    if result == 0:
        result = sys_munmap(cpu, library, LIBRARY * touched(cpu))
    if result == 0:
        result = sys_munmap(cpu, signal_stack, SIGNAL_STACK)
    if result == 0:
        result = sys_munmap(cpu, stack - PAGE_SIZE, PAGE_SIZE + stack_length(cpu))
    return result if result < 0 else previous
