# SPDX-License-Identifier: MIT
"""Calls of the stress mix that overlap each other: nobody knows what must come of them."""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_SHIFT
from spfemu.mm.flags import Madv, Map
from spfemu.mm.mmu import user_write
from spfemu.mm.syscalls import sys_brk, sys_madvise, sys_mmap, sys_mprotect, sys_munmap
from spfemu.primitives import load
from spfemu.stress.mix.calls import may_return, owned_length, random_rights
from spfemu.stress.mix.model import UNITS, Area, Wrong, expect, stress_wrong, unit_address
from spfemu.workloads.common import random_below

HEAP_PAGES = 12
PRIVATE_ANON = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)


@kernel
def wild_call(cpu: int) -> int:
    """Do a random call on random units of area WILD, or on the heap."""
    if random_below(cpu, 8) == 0:
        return heap_call(cpu)
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
