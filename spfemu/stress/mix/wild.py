# SPDX-License-Identifier: MIT
"""Calls of the stress mix that overlap each other: nobody knows what must come of them."""

from spfemu.kernel import kernel
from spfemu.mm.flags import Madv, Map
from spfemu.mm.syscalls import sys_madvise, sys_mmap, sys_mprotect, sys_munmap
from spfemu.stress.mix.calls import may_return, owned_length, random_rights
from spfemu.stress.mix.model import UNITS, Area, Wrong, expect, unit_address
from spfemu.workloads.common import random_below

PRIVATE_ANON = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)


@kernel
def wild_call(cpu: int) -> int:
    """Do a random call on random units of area WILD."""
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
