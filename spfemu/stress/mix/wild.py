# SPDX-License-Identifier: MIT
"""Calls of the stress mix outside of owned areas.

Those on area WILD and on the heap overlap each other: nobody knows what must come of them.  What is
mapped wherever there is room is its CPU's own.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_SHIFT
from spfemu.mm.flags import Madv, Map, Mremap
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.mremap import sys_mremap
from spfemu.mm.syscalls import sys_brk, sys_madvise, sys_mmap, sys_mprotect, sys_munmap
from spfemu.primitives import load
from spfemu.stress.mix.calls import READ_WRITE, may_return, owned_length, random_rights
from spfemu.stress.mix.model import UNITS, Area, Wrong, expect, stress_wrong, unit_address
from spfemu.workloads.common import random_below

HEAP_PAGES = 12
ANYWHERE_PAGES = 4
PRIVATE_ANON = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
MAYMOVE = int(Mremap.MAYMOVE)


@kernel
def wild_call(cpu: int) -> int:
    """Do a random call on random units of area WILD, on the heap, or anywhere."""
    kind = random_below(cpu, 8)
    if kind == 0:
        return heap_call(cpu)
    if kind == 1:
        return anywhere_call(cpu)
    first = random_below(cpu, UNITS)
    length = owned_length(Area.WILD, 0, 1 + random_below(cpu, UNITS - first))
    address = unit_address(Area.WILD, first)
    kind = random_below(cpu, 8)
    if kind <= 2:
        result = sys_mmap(cpu, address, length, random_rights(cpu), PRIVATE_ANON)
        return expect(cpu, Wrong.CALL, address, address, result)
    if kind == 3:
        return expect(cpu, Wrong.CALL, address, 0, sys_munmap(cpu, address, length))
    if kind == 4:
        result = sys_mprotect(cpu, address, length, random_rights(cpu))
    elif kind == 5:
        result = sys_madvise(cpu, address, length, Madv.FREE)
    elif kind == 6:
        result = sys_madvise(cpu, address, length, Madv.PAGEOUT)
    else:
        result = sys_madvise(cpu, address, length, Madv.DONTNEED)
    return 0 if may_return(result) else expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def heap_call(cpu: int) -> int:
    """Move the end of the heap and touch a page that may be behind it by now."""
    start = load(load(cpu + CPU.mm) + MM.start_brk)
    wanted = start + (random_below(cpu, HEAP_PAGES) << PAGE_SHIFT)
    result = sys_brk(cpu, wanted)
    if result < start or result > start + (HEAP_PAGES << PAGE_SHIFT):
        return stress_wrong(cpu, Wrong.CALL, start, wanted, result)
    address = start + (random_below(cpu, HEAP_PAGES) << PAGE_SHIFT)
    result = user_write(cpu, address, address)
    return 0 if may_return(result) else stress_wrong(cpu, Wrong.WRITE, address, 0, result)


@kernel
def anywhere_call(cpu: int) -> int:
    """Map where there is room, let that grow, find there what was written, and unmap."""
    flags = Map.PRIVATE | Map.ANONYMOUS
    if random_below(cpu, 2):
        flags = flags | Map.POPULATE
    pages = 1 + random_below(cpu, ANYWHERE_PAGES)
    length = pages << PAGE_SHIFT
    address = sys_mmap(cpu, 0, length, READ_WRITE, flags)
    if address <= 0:
        return stress_wrong(cpu, Wrong.CALL, 0, 1, address)
    value = random_below(cpu, 1 << 30) + 1
    result = expect(cpu, Wrong.WRITE, address, 0, user_write(cpu, address, value))
    grown = (pages + 1) << PAGE_SHIFT
    moved = sys_mremap(cpu, address, length, grown, MAYMOVE, 0)
    if moved <= 0:
        return stress_wrong(cpu, Wrong.CALL, address, address, moved)
    if result == 0:
        result = anywhere_value(cpu, moved, value)
    if result == 0:
        result = anywhere_value(cpu, moved + length, 0)
    if result == 0:
        # all but the first page go by shrinking
        shrunk = sys_mremap(cpu, moved, grown, 1 << PAGE_SHIFT, 0, 0)
        result = expect(cpu, Wrong.CALL, moved, moved, shrunk)
    if result == 0:
        result = anywhere_value(cpu, moved, value)
    unmapped = sys_munmap(cpu, moved, 1 << PAGE_SHIFT)
    return expect(cpu, Wrong.CALL, moved, 0, unmapped) if result == 0 else result


@kernel
def anywhere_value(cpu: int, address: int, value: int) -> int:
    """Read a word of what is this CPU's own."""
    result, found = user_read(cpu, address)
    if result != 0:
        return stress_wrong(cpu, Wrong.READ, address, 0, result)
    return expect(cpu, Wrong.VALUE, address, value, found)
