# SPDX-License-Identifier: MIT
"""Programs of a process that forks while its threads write, and that knows what all must see.

Each writer counts up a word of its own in each of PAGES pages and notes the count when it has been
written.  It reads the word before: any other value is a lost update.  The forker reads all words in
each child: they must be counts that the writers had when it forked, and stay what they are.
"""

from enum import IntEnum

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SHIFT, SYSTEM, WORD
from spfemu.mm.context import switch_mm
from spfemu.mm.fork import exit_mm, sys_fork
from spfemu.mm.mmap_lock import mmap_write_unlock
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.sched import cond_resched
from spfemu.mm.syscalls import sys_mmap, sys_munmap
from spfemu.primitives import load, read_once, store, write_once

PAGES = 12
WORDS = 4
"""Words per page: one per CPU; the last one is the forker's."""
FORKER = WORDS - 1
AREA = 1 << 40


class Scratch(IntEnum):
    """Byte offsets in the scratch words."""

    FAILED = 0  # a Wrong, or 0
    ADDRESS = 1 * WORD
    EXPECTED = 2 * WORD
    FOUND = 3 * WORD
    STOP = 4 * WORD
    COUNTS = 8 * WORD
    BEFORE = (8 + PAGES * WORDS) * WORD
    AFTER = (8 + 2 * PAGES * WORDS) * WORD
    CHILD = (8 + 3 * PAGES * WORDS) * WORD


class Wrong(IntEnum):
    """What did not give the right result."""

    ERROR = 1
    LOST_UPDATE = 2
    OLD_IN_CHILD = 3
    NEW_IN_CHILD = 4
    CHILD_CHANGED = 5
    FORK = 6


@kernel
def fork_scratch(cpu: int) -> int:
    """Address of the test's words."""
    return load(load(cpu + CPU.system) + SYSTEM.scratch)


@kernel
def fork_wrong(cpu: int, wrong: int, address: int, expected: int, found: int) -> int:
    """Note the first thing that went wrong; returns it."""
    scratch = fork_scratch(cpu)
    if load(scratch + Scratch.FAILED) == 0:
        store(scratch + Scratch.FAILED, wrong)
        store(scratch + Scratch.ADDRESS, address)
        store(scratch + Scratch.EXPECTED, expected)
        store(scratch + Scratch.FOUND, found)
    return wrong


@kernel
def fork_address(index: int) -> int:
    """Address of word number `index` of all pages' words."""
    return AREA + ((index // WORDS) << PAGE_SHIFT) + (index % WORDS) * WORD


@kernel
def fork_count_up(cpu: int, index: int) -> int:
    """Read a word of this CPU's, which must be as it left it, and count it up; 0 or a Wrong."""
    count = fork_scratch(cpu) + Scratch.COUNTS + index * WORD
    address = fork_address(index)
    expected = load(count)
    error, value = user_read(cpu, address)
    if error != 0:
        return fork_wrong(cpu, Wrong.ERROR, address, 0, error)
    if value != expected:
        return fork_wrong(cpu, Wrong.LOST_UPDATE, address, expected, value)
    error = user_write(cpu, address, expected + 1)
    if error != 0:
        return fork_wrong(cpu, Wrong.ERROR, address, 0, error)
    write_once(count, expected + 1)
    return 0


@kernel
def fork_writer(cpu: int) -> int:
    """Count up until the forker ends or anything is wrong."""
    scratch = fork_scratch(cpu)
    me = load(cpu + CPU.id)
    page = 0
    while read_once(scratch + Scratch.STOP) == 0:
        result = fork_count_up(cpu, page * WORDS + me)
        if result != 0:
            return result
        page = (page + 1) % PAGES
        cond_resched(cpu)
    return 0


@kernel
def fork_snapshot(cpu: int, to: int) -> None:
    """Copy the noted counts."""
    scratch = fork_scratch(cpu)
    for index in range(PAGES * WORDS):
        store(scratch + to + index * WORD, read_once(scratch + Scratch.COUNTS + index * WORD))


@kernel
def fork_check_child(cpu: int) -> int:
    """Check all words of a new child against the counts before and after the fork."""
    scratch = fork_scratch(cpu)
    for index in range(PAGES * WORDS):
        address = fork_address(index)
        error, value = user_read(cpu, address)
        low = load(scratch + Scratch.BEFORE + index * WORD)
        # a writer notes a count after it has written it
        high = load(scratch + Scratch.AFTER + index * WORD) + 1
        if error != 0:
            return fork_wrong(cpu, Wrong.ERROR, address, 0, error)
        if value < low:
            return fork_wrong(cpu, Wrong.OLD_IN_CHILD, address, low, value)
        if value > high:
            return fork_wrong(cpu, Wrong.NEW_IN_CHILD, address, high, value)
        store(scratch + Scratch.CHILD + index * WORD, value)
    return 0


@kernel
def fork_write_child(cpu: int) -> int:
    """Write in the child what the parent must not see, and check that the rest has not changed."""
    scratch = fork_scratch(cpu)
    for page in range(PAGES):
        index = page * WORDS + FORKER
        if page % 2 == 0:
            error = user_write(cpu, fork_address(index), -1)
            if error != 0:
                return fork_wrong(cpu, Wrong.ERROR, fork_address(index), 0, error)
            store(scratch + Scratch.CHILD + index * WORD, -1)
    for index in range(PAGES * WORDS):
        address = fork_address(index)
        error, value = user_read(cpu, address)
        expected = load(scratch + Scratch.CHILD + index * WORD)
        if error != 0 or value != expected:
            return fork_wrong(cpu, Wrong.CHILD_CHANGED, address, expected, value)
    return 0


@kernel
def fork_once(cpu: int) -> int:
    """Fork, check and change the child on this CPU, end it; 0 or a Wrong."""
    parent = load(cpu + CPU.mm)
    fork_snapshot(cpu, Scratch.BEFORE)
    child = sys_fork(cpu)
    fork_snapshot(cpu, Scratch.AFTER)
    if child < 0:
        return fork_wrong(cpu, Wrong.FORK, 0, 0, child)
    switch_mm(cpu, child)
    result = fork_check_child(cpu)
    if result == 0:
        result = fork_write_child(cpu)
    exit_mm(cpu, parent)
    return result


@kernel
def fork_forker(cpu: int, rounds: int) -> int:
    """Fork again and again, and count up in between like the writers; then let all end."""
    result = 0
    while result == 0 and rounds > 0:
        rounds -= 1
        result = fork_once(cpu)
        if result == 0:
            result = fork_count_up(cpu, (rounds % PAGES) * WORDS + FORKER)
        cond_resched(cpu)
    write_once(fork_scratch(cpu) + Scratch.STOP, 1)
    return result


# Unmapping at once


@kernel
def fork_share(cpu: int, pages: int) -> int:
    """Map an area, write to it, fork; returns the child."""
    sys_mmap(cpu, AREA, pages << PAGE_SHIFT, 3, 0x32)
    for page in range(pages):
        user_write(cpu, AREA + (page << PAGE_SHIFT), page)
    return sys_fork(cpu)


@kernel
def fork_drop_often(cpu: int, pages: int, rounds: int) -> int:
    """Fork, and let the child unmap all; CPU 1 makes copies of some pages first.

    So the CPUs unmap the same frames, but do not meet them in the same order.
    """
    mm = load(cpu + CPU.mm)
    while rounds > 0:
        rounds -= 1
        child = sys_fork(cpu)
        if child < 0:
            return child
        switch_mm(cpu, child)
        for page in range(pages):
            if load(cpu + CPU.id) == 1 and page % 3 == 0:
                user_write(cpu, AREA + (page << PAGE_SHIFT), 1)
        error = sys_munmap(cpu, AREA, pages << PAGE_SHIFT)
        exit_mm(cpu, mm)
        if error != 0:
            return error
        cond_resched(cpu)
    return 0


# Mutants


@kernel
def mutant_never_write_protect(vm_flags: int) -> int:
    """Leave what is shared writable."""
    return 0


@kernel
def mutant_no_flush(cpu: int, mm: int, oldmm: int, rest: int) -> None:
    """Leave writable translations of the parent's in its CPUs' TLBs."""
    mmap_write_unlock(cpu, mm)
    mmap_write_unlock(cpu, oldmm)
