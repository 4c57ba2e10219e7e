# SPDX-License-Identifier: MIT
"""Runs programs and records what is to be seen after each operation; the same on both sides.

The calls and touches, `read_map`, `read_presence`, `copy_present_page` and `minor_faults` are the
side's own: see `emulated` and `host`.
"""

from enum import IntEnum
from typing import TYPE_CHECKING

from spfemu.fidelity.channel import (
    ENTRY_SIZE,
    FILE_SIZES,
    MAX_VMAS,
    OPERATION_SIZE,
    RECORD_SIZE,
    Channel,
    Operation,
    Record,
)
from spfemu.kernel import kernel
from spfemu.layout import PAGE_MASK, PAGE_SIZE, WORD
from spfemu.mm.flags import Errno, Map
from spfemu.primitives import (
    futex_wait,
    futex_wake,
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
)

if TYPE_CHECKING:  # defined by each side
    from spfemu.fidelity.emulated import (
        copy_present_page,
        exit_child,
        fork_child,
        mincore_bits,
        minor_faults,
        operation_done,
        read_map,
        read_presence,
        switch_process,
    )
    from spfemu.mm.file_calls import sys_ftruncate, sys_msync, sys_pwrite
    from spfemu.mm.mlock import sys_mlock, sys_mlock2, sys_munlock
    from spfemu.mm.mmu import user_read, user_write
    from spfemu.mm.mremap import sys_mremap
    from spfemu.mm.syscalls import (
        sys_brk,
        sys_madvise,
        sys_mmap,
        sys_mmap_file,
        sys_mprotect,
        sys_munmap,
    )


class Kind(IntEnum):
    """What an operation is."""

    MMAP = 1
    MUNMAP = 2
    MPROTECT = 3
    MADVISE = 4
    BRK = 5
    READ = 6
    WRITE = 7
    UNMAP_ALL = 8  # between programs: shrink the heap to nothing, unmap all that is mapped
    MREMAP = 9
    MLOCK = 10
    MLOCK2 = 11
    MUNLOCK = 12
    MINCORE = 13
    FTRUNCATE = 14
    MSYNC = 15
    PWRITE = 16
    FORK = 17  # make a child; the process goes on
    SWITCH = 18  # let the other of process and child go on
    EXIT = 19  # end the child, whoever runs; the process goes on


NR_FILES = len(FILE_SIZES)
MAP_HEAP = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
DIGEST_FACTOR = 0x5DEECE66D
DIGEST_MASK = (1 << 62) - 1


@kernel
def serve(cpu: int, channel: int) -> None:
    """Run one request after the other, up to a negative one (the parent kills instead)."""
    seen = 0
    while True:
        while read_once(channel + Channel.REQUEST) == seen:
            futex_wait(channel + Channel.REQUEST, seen, -1)
        # pairs with the futex call of the parent, after which it does not touch the operations
        seen = smp_load_acquire(channel + Channel.REQUEST)
        if seen < 0:
            return
        run_operations(cpu, channel)
        # pairs with the acquire of the parent: the records are there when it sees the reply
        smp_store_release(channel + Channel.REPLY, seen)
        futex_wake(channel + Channel.REPLY, 1)


@kernel
def run_operations(cpu: int, channel: int) -> None:
    """Run the operations of a request; STREAM_END follows, so a crash loses one record at most."""
    store(channel + Channel.STREAM_END, channel + Channel.STREAM)
    store(channel + Channel.NEXT, 0)
    while load(channel + Channel.NEXT) < load(channel + Channel.NR_OPERATIONS):
        store(channel + Channel.STREAM_END, run_operation(cpu, channel))
        store(channel + Channel.NEXT, load(channel + Channel.NEXT) + 1)


@kernel
def this_operation(channel: int) -> int:
    """Return the address of the operation that runs."""
    return channel + Channel.OPERATIONS + load(channel + Channel.NEXT) * OPERATION_SIZE


@kernel
def run_operation(cpu: int, channel: int) -> int:
    """Run one operation and write its record; returns the address behind that.

    A process that hands over to another does not write the record: the other does, which returns
    here from the operation with which it handed over itself.
    """
    before = minor_faults(cpu, channel)
    result, value = perform(cpu, channel, this_operation(channel))
    record = load(channel + Channel.STREAM_END)
    faults = minor_faults(cpu, channel) - before
    if is_no_call(load(this_operation(channel))):
        faults = 0
    operation_done(cpu)
    store(record + Record.RESULT, result)
    store(record + Record.VALUE, value)
    store(record + Record.FAULTS, faults)
    vmas = record + RECORD_SIZE
    pages = read_map(cpu, channel, vmas)
    end = observe_pages(cpu, channel, vmas, pages)
    store(record + Record.NR_VMAS, (pages - vmas) // ENTRY_SIZE)
    store(record + Record.NR_PAGES, (end - pages) // ENTRY_SIZE)
    return end


@kernel
def perform(cpu: int, channel: int, operation: int) -> tuple[int, int]:
    """Do what the operation says; returns its result and, for a read, the word."""
    kind = load(operation + Operation.KIND)
    address = load(operation + Operation.ADDRESS)
    length = load(operation + Operation.LENGTH)
    prot = load(operation + Operation.PROT)
    value = load(operation + Operation.VALUE)
    result = 0
    word = 0
    if kind == Kind.READ:
        result, word = user_read(cpu, address)
        result = touched(result)
    elif kind == Kind.WRITE:
        result = touched(user_write(cpu, address, value))
    elif kind == Kind.MMAP:
        flags = load(operation + Operation.FLAGS)
        file = channel_file(channel, operation)
        offset = load(operation + Operation.OFFSET)
        result = sys_mmap_file(cpu, address, length, prot, flags, file, offset)
    elif kind == Kind.MUNMAP:
        result = sys_munmap(cpu, address, length)
    elif kind == Kind.MPROTECT:
        result = sys_mprotect(cpu, address, length, prot)
    elif kind == Kind.MADVISE:
        result = sys_madvise(cpu, address, length, value)
    elif kind == Kind.MREMAP:
        new_length = load(operation + Operation.NEW_LENGTH)
        target = load(operation + Operation.TARGET)
        flags = load(operation + Operation.FLAGS)
        result = sys_mremap(cpu, address, length, new_length, flags, target)
    elif kind == Kind.MLOCK:
        result = sys_mlock(cpu, address, length)
    elif kind == Kind.MLOCK2:
        result = sys_mlock2(cpu, address, length, value)
    elif kind == Kind.MUNLOCK:
        result = sys_munlock(cpu, address, length)
    elif kind == Kind.MINCORE:
        result, word = mincore_bits(cpu, channel, address, length)
    elif kind == Kind.BRK:
        result = sys_brk(cpu, address)
    elif kind == Kind.FTRUNCATE:
        result = sys_ftruncate(cpu, channel_file(channel, operation), length)
    elif kind == Kind.MSYNC:
        result = sys_msync(cpu, address, length, value)
    elif kind == Kind.PWRITE:
        file = channel_file(channel, operation)
        result = sys_pwrite(cpu, file, load(operation + Operation.OFFSET), value)
    else:
        result = perform_on_family(cpu, channel, kind)
    return result, word


@kernel
def perform_on_family(cpu: int, channel: int, kind: int) -> int:
    """Do what has to do with the child; without one, SWITCH and EXIT do nothing.

    Between programs there is none, so UNMAP_ALL ends it, and the process clears up.
    """
    child = load(channel + Channel.CHILD)
    result = 0
    if kind == Kind.FORK and child == 0:
        result = fork_child(cpu, channel)
    elif kind == Kind.SWITCH and child != 0:
        switch_process(cpu, channel)
    elif (kind == Kind.EXIT or kind == Kind.UNMAP_ALL) and child != 0:
        exit_child(cpu, channel)
    if load(this_operation(channel)) == Kind.UNMAP_ALL:
        unmap_all(cpu, channel)
    return result


@kernel
def is_no_call(kind: int) -> int:
    """Tell whether an operation is none of a program's calls or touches.

    What the interpreter itself faults in there is not to be compared.
    """
    return kind == Kind.UNMAP_ALL or kind == Kind.FORK or kind == Kind.SWITCH or kind == Kind.EXIT


@kernel
def touched(result: int) -> int:
    """Return the result of a touch as a system call has it, which hides what signal it would be."""
    return -Errno.EFAULT if result == -Errno.EIO else result


@kernel
def channel_file(channel: int, operation: int) -> int:
    """Return how this side calls the file of an operation, or no file."""
    return load(channel + Channel.FILES + load(operation + Operation.FILE) * WORD)


@kernel
def unmap_all(cpu: int, channel: int) -> None:
    """Take away all that programs have mapped and written."""
    scratch = load(channel + Channel.STREAM_END)
    start_brk = load(channel + Channel.START_BRK)
    if sys_brk(cpu, start_brk) != start_brk:
        # the heap does not shrink over a range in which nothing is mapped
        heap = (start_brk + PAGE_SIZE - 1) & PAGE_MASK
        sys_mmap(cpu, heap, PAGE_SIZE, 0, MAP_HEAP)
        sys_brk(cpu, start_brk)
    end = read_map(cpu, channel, scratch)
    while scratch < end:
        start = load(scratch)
        sys_munmap(cpu, start, load(scratch + WORD) - start)
        scratch += ENTRY_SIZE
    for i in range(1, NR_FILES + 1):
        file = load(channel + Channel.FILES + i * WORD)
        sys_ftruncate(cpu, file, 0)
        sys_ftruncate(cpu, file, load(channel + Channel.FILE_SIZES + i * WORD))


@kernel
def put_entry(at: int, first: int, second: int, third: int, fourth: int) -> int:
    """Append one entry to a list; returns the address behind it."""
    store(at, first)
    store(at + WORD, second)
    store(at + 2 * WORD, third)
    store(at + 3 * WORD, fourth)
    return at + ENTRY_SIZE


@kernel
def list_is_full(vmas: int, at: int) -> int:
    """Tell whether a list of VMAs has no room for another."""
    return at >= vmas + MAX_VMAS * ENTRY_SIZE


@kernel
def skip_foreign(foreign: int, end: int) -> int:
    """Go on in the list of ends of foreign mappings to the first that is not below `end`."""
    while load(foreign) != 0 and load(foreign) < end:
        foreign += WORD
    return foreign


@kernel
def observe_pages(cpu: int, channel: int, vmas: int, at: int) -> int:
    """Append the present pages of all windows to a record whose VMAs are [vmas, at)."""
    vma = vmas
    last = at
    window = channel + Channel.WINDOWS
    while load(window + WORD) != 0:
        address = load(window)
        pages = load(window + WORD)
        read_presence(cpu, channel, address, pages)
        for i in range(pages):
            if load(channel + Channel.PRESENCE + i * WORD) != 0:
                while vma < last and load(vma + WORD) <= address:
                    vma += ENTRY_SIZE
                rights = load(vma + 2 * WORD) if vma < last else 0
                at = observe_page(cpu, channel, address, rights, at)
            address += PAGE_SIZE
        window += 2 * WORD
    return at


@kernel
def observe_page(cpu: int, channel: int, address: int, rights: int, at: int) -> int:
    """Append one present page, whose VMA has the given rights."""
    page = channel + Channel.PAGE
    copy_present_page(cpu, channel, address, rights)
    digest = 0
    for i in range(PAGE_SIZE // WORD):
        digest = (digest * DIGEST_FACTOR + load(page + i * WORD)) & DIGEST_MASK
    return put_entry(at, address, load(page), digest, 0)
