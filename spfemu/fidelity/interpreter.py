# SPDX-License-Identifier: MIT
"""Runs programs and records what is to be seen after each operation; the same on both sides.

The calls and touches, `read_map`, `read_presence`, `copy_present_page` and `minor_faults` are the
side's own: see `emulated` and `host`.
"""

from enum import IntEnum
from typing import TYPE_CHECKING

from spfemu.fidelity.channel import (
    ENTRY_SIZE,
    MAX_VMAS,
    OPERATION_SIZE,
    RECORD_SIZE,
    Channel,
    Operation,
    Record,
)
from spfemu.kernel import kernel
from spfemu.layout import PAGE_MASK, PAGE_SIZE, WORD
from spfemu.mm.flags import Map
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
        mincore_bits,
        minor_faults,
        operation_done,
        read_map,
        read_presence,
    )
    from spfemu.mm.mlock import sys_mlock, sys_mlock2, sys_munlock
    from spfemu.mm.mmu import user_read, user_write
    from spfemu.mm.mremap import sys_mremap
    from spfemu.mm.syscalls import sys_brk, sys_madvise, sys_mmap, sys_mprotect, sys_munmap


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
    operation = channel + Channel.OPERATIONS
    record = channel + Channel.STREAM
    store(channel + Channel.STREAM_END, record)
    for _ in range(load(channel + Channel.NR_OPERATIONS)):
        record = run_operation(cpu, channel, operation, record)
        store(channel + Channel.STREAM_END, record)
        operation += OPERATION_SIZE


@kernel
def run_operation(cpu: int, channel: int, operation: int, record: int) -> int:
    """Run one operation and write its record; returns the address behind that."""
    before = minor_faults(cpu, channel)
    result, value = perform(cpu, channel, operation, record)
    faults = minor_faults(cpu, channel) - before
    if load(operation) == Kind.UNMAP_ALL:
        # no call of a program: whatever the interpreter itself takes is not to be compared
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
def perform(cpu: int, channel: int, operation: int, scratch: int) -> tuple[int, int]:
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
    elif kind == Kind.WRITE:
        result = user_write(cpu, address, value)
    elif kind == Kind.MMAP:
        result = sys_mmap(cpu, address, length, prot, load(operation + Operation.FLAGS))
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
    else:
        unmap_all(cpu, channel, scratch)
    return result, word


@kernel
def unmap_all(cpu: int, channel: int, scratch: int) -> None:
    """Take away all that programs have mapped; `scratch` is room for a list of it."""
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


@kernel
def put_entry(at: int, first: int, second: int, third: int) -> int:
    """Append one entry to a list; returns the address behind it."""
    store(at, first)
    store(at + WORD, second)
    store(at + 2 * WORD, third)
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
    return put_entry(at, address, load(page), digest)
