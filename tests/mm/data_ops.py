# SPDX-License-Identifier: MIT
"""Random programs of memory accesses and system calls that know what every access must give.

All workers share AREAS areas of PAGES pages each in one mm, close together, so that they share
VMAs, page tables and cache lines.  Two models watch them:

*Owned.*  An area belongs to the worker that holds its lock (a word of the test, not of the
kernel).  Per page the model knows its rights and the value of its first word, so every access and
every call has exactly one right result, whichever CPUs had the area before::

    page not mapped                      access: -EFAULT
    page mapped with `rights`            access: -EFAULT unless allowed; value: what was last
                                         written, 0 after mmap or madvise

*Racing.*  Without the lock, each worker writes and reads a word of its own in any page.  That may
fail at any time, and the word may be gone, but if it is there it is what this CPU wrote last, and
once it was gone it does not come back.

A wrong result is noted in the scratch words and ends the program.
"""

from enum import IntEnum

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SHIFT, PAGE_SIZE, SYSTEM, WORD
from spfemu.mm.flags import Errno, Madv, Map, Prot
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.sched import cond_resched
from spfemu.mm.spinlock import spin_trylock, spin_unlock
from spfemu.mm.syscalls import sys_madvise, sys_mmap, sys_mprotect, sys_munmap
from spfemu.primitives import load, store

AREAS = 8
PAGES = 8
GROUP = 4
"""Areas that lie side by side; a group's middle is at a multiple of 2 MiB."""
GROUP_STRIDE = 2 << 20
FIRST = (1 << 30) - GROUP * PAGES * PAGE_SIZE // 2
"""The first group lies across a multiple of 1 GiB."""
MAX_CPUS = 4

NOT_MAPPED = -1
READ_WRITE = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
RANDOM_MASK = (1 << 62) - 1


class Scratch(IntEnum):
    """Byte offsets in the scratch words."""

    FAILED = 0  # a Wrong, or 0
    FAILED_CPU = 1 * WORD
    FAILED_ADDRESS = 2 * WORD
    EXPECTED = 3 * WORD
    FOUND = 4 * WORD
    SUCCESSES = 5 * WORD  # accesses that succeeded: the test is worth something
    LOCKS = 8 * WORD
    RIGHTS = (8 + AREAS) * WORD
    VALUES = (8 + AREAS + AREAS * PAGES) * WORD
    OWN = (8 + AREAS + 2 * AREAS * PAGES) * WORD  # per CPU and page: last racing value
    END = (8 + AREAS + (2 + MAX_CPUS) * AREAS * PAGES) * WORD


class Wrong(IntEnum):
    """What did not give the right result."""

    READ = 1
    VALUE = 2
    WRITE = 3
    MMAP = 4
    MUNMAP = 5
    MPROTECT = 6
    MADVISE = 7
    RACING_ERROR = 8
    RACING_VALUE = 9


@kernel
def data_scratch(cpu: int) -> int:
    """Address of the test's words."""
    return load(load(cpu + CPU.system) + SYSTEM.scratch)


@kernel
def data_random(cpu: int, limit: int) -> int:
    """Draw a number below `limit` (Marsaglia's xorshift)."""
    x = load(cpu + CPU.random)
    x = x ^ ((x << 13) & RANDOM_MASK)
    x = x ^ (x >> 7)
    x = x ^ ((x << 17) & RANDOM_MASK)
    store(cpu + CPU.random, x)
    return ((x >> 30) * limit) >> 32


@kernel
def data_address(page: int) -> int:
    """Address of page number `page` of all areas' pages."""
    group = page >> 5
    return FIRST + group * GROUP_STRIDE + ((page & 31) << PAGE_SHIFT)


@kernel
def data_expect(cpu: int, wrong: int, page: int, expected: int, found: int) -> int:
    """Compare; returns 0, or `wrong` after noting the first difference of the run."""
    if expected == found:
        return 0
    scratch = data_scratch(cpu)
    if load(scratch + Scratch.FAILED) == 0:
        store(scratch + Scratch.FAILED, wrong)
        store(scratch + Scratch.FAILED_CPU, load(cpu + CPU.id))
        store(scratch + Scratch.FAILED_ADDRESS, data_address(page))
        store(scratch + Scratch.EXPECTED, expected)
        store(scratch + Scratch.FOUND, found)
    return wrong


# Owned areas


@kernel
def data_read(cpu: int, page: int) -> int:
    """Read the first word of a page of an owned area."""
    scratch = data_scratch(cpu)
    rights = load(scratch + Scratch.RIGHTS + page * WORD)
    result, value = user_read(cpu, data_address(page))
    if rights <= 0:
        return data_expect(cpu, Wrong.READ, page, -Errno.EFAULT, result)
    if result != 0:
        return data_expect(cpu, Wrong.READ, page, 0, result)
    store(scratch + Scratch.SUCCESSES, load(scratch + Scratch.SUCCESSES) + 1)
    expected = load(scratch + Scratch.VALUES + page * WORD)
    return data_expect(cpu, Wrong.VALUE, page, expected, value)


@kernel
def data_write(cpu: int, page: int) -> int:
    """Write the first word of a page of an owned area."""
    scratch = data_scratch(cpu)
    rights = load(scratch + Scratch.RIGHTS + page * WORD)
    value = data_random(cpu, 1 << 30) + 1
    result = user_write(cpu, data_address(page), value)
    if rights < 0 or rights & Prot.WRITE == 0:
        return data_expect(cpu, Wrong.WRITE, page, -Errno.EFAULT, result)
    store(scratch + Scratch.VALUES + page * WORD, value)
    return data_expect(cpu, Wrong.WRITE, page, 0, result)


@kernel
def data_set(cpu: int, page: int, rights: int) -> None:
    """Note that a page was mapped afresh, or unmapped."""
    scratch = data_scratch(cpu)
    store(scratch + Scratch.RIGHTS + page * WORD, rights)
    store(scratch + Scratch.VALUES + page * WORD, 0)


@kernel
def data_mmap(cpu: int, first: int, last: int) -> int:
    """Map pages [first, last) afresh with random rights."""
    rights = data_random(cpu, 8)
    if rights < 4:
        rights = READ_WRITE
    address = data_address(first)
    result = sys_mmap(cpu, address, (last - first) << PAGE_SHIFT, rights, FIXED)
    for page in range(first, last):
        data_set(cpu, page, rights)
    return data_expect(cpu, Wrong.MMAP, first, address, result)


@kernel
def data_munmap(cpu: int, first: int, last: int) -> int:
    """Unmap pages [first, last), mapped or not."""
    result = sys_munmap(cpu, data_address(first), (last - first) << PAGE_SHIFT)
    for page in range(first, last):
        data_set(cpu, page, NOT_MAPPED)
    return data_expect(cpu, Wrong.MUNMAP, first, 0, result)


@kernel
def data_mprotect(cpu: int, first: int, last: int) -> int:
    """Change the rights of pages [first, last), which ends at the first hole."""
    rights = data_random(cpu, 8)
    if rights & Prot.EXEC:
        rights = READ_WRITE
    scratch = data_scratch(cpu)
    result = sys_mprotect(cpu, data_address(first), (last - first) << PAGE_SHIFT, rights)
    page = first
    while page < last and load(scratch + Scratch.RIGHTS + page * WORD) >= 0:
        store(scratch + Scratch.RIGHTS + page * WORD, rights)
        page += 1
    expected = 0 if page == last else -Errno.ENOMEM
    return data_expect(cpu, Wrong.MPROTECT, first, expected, result)


@kernel
def data_madvise(cpu: int, first: int, last: int) -> int:
    """Drop the pages of [first, last); holes are passed over."""
    scratch = data_scratch(cpu)
    result = sys_madvise(cpu, data_address(first), (last - first) << PAGE_SHIFT, Madv.DONTNEED)
    expected = 0
    for page in range(first, last):
        store(scratch + Scratch.VALUES + page * WORD, 0)
        if load(scratch + Scratch.RIGHTS + page * WORD) < 0:
            expected = -Errno.ENOMEM
    return data_expect(cpu, Wrong.MADVISE, first, expected, result)


@kernel
def data_call(cpu: int, area: int) -> int:
    """Do a random system call on random pages of an owned area."""
    first = data_random(cpu, PAGES)
    last = first + 1 + data_random(cpu, PAGES - first)
    first += area * PAGES
    last += area * PAGES
    call = data_random(cpu, 8)
    if call < 3:
        return data_mmap(cpu, first, last)
    if call == 3:
        return data_munmap(cpu, first, last)
    if call < 6:
        return data_mprotect(cpu, first, last)
    return data_madvise(cpu, first, last)


@kernel
def data_owned(cpu: int, calls: int) -> int:
    """Take an area if it is free; access it a few times, and with `calls` of 16 change it."""
    area = data_random(cpu, AREAS)
    lock = data_scratch(cpu) + Scratch.LOCKS + area * WORD
    if spin_trylock(cpu, lock) == 0:
        return 0
    result = 0
    if data_random(cpu, 16) < calls:
        result = data_call(cpu, area)
    accesses = 4
    while result == 0 and accesses > 0:
        accesses -= 1
        page = area * PAGES + data_random(cpu, PAGES)
        if data_random(cpu, 2):
            result = data_write(cpu, page)
        else:
            result = data_read(cpu, page)
    spin_unlock(lock)
    return result


# Racing accesses


@kernel
def data_racing(cpu: int) -> int:
    """Write or read this CPU's own word of any page."""
    page = data_random(cpu, AREAS * PAGES)
    index = load(cpu + CPU.id)
    own = data_scratch(cpu) + Scratch.OWN + (index * AREAS * PAGES + page) * WORD
    address = data_address(page) + (1 + index) * WORD
    if data_random(cpu, 2):
        value = data_random(cpu, 1 << 30) + 1
        result = user_write(cpu, address, value)
        if result == 0:
            store(own, value)
            return 0
        return data_expect(cpu, Wrong.RACING_ERROR, page, -Errno.EFAULT, result)
    result, value = user_read(cpu, address)
    if result != 0:
        return data_expect(cpu, Wrong.RACING_ERROR, page, -Errno.EFAULT, result)
    if value == 0:
        store(own, 0)
    return data_expect(cpu, Wrong.RACING_VALUE, page, load(own), value)


# Whole programs


@kernel
def data_setup(cpu: int) -> int:
    """Begin with nothing mapped and nothing known."""
    scratch = data_scratch(cpu)
    for offset in range(Scratch.END // WORD):
        store(scratch + offset * WORD, 0)
    for page in range(AREAS * PAGES):
        store(scratch + Scratch.RIGHTS + page * WORD, NOT_MAPPED)
    return 0


@kernel
def data_program(cpu: int, rounds: int, calls: int) -> int:
    """Run a random program, until anybody finds something wrong; returns a Wrong or 0.

    `calls` of 16 turns of an owned area begin with a system call.
    """
    failed = data_scratch(cpu) + Scratch.FAILED
    result = 0
    while result == 0 and rounds > 0 and load(failed) == 0:
        rounds -= 1
        if data_random(cpu, 2):
            result = data_racing(cpu)
        else:
            result = data_owned(cpu, calls)
        cond_resched(cpu)
    return result


@kernel
def data_verify(cpu: int) -> int:
    """Read all pages with the others at rest; returns a Wrong or 0."""
    result = 0
    for page in range(AREAS * PAGES):
        if result == 0:
            result = data_read(cpu, page)
    return result
