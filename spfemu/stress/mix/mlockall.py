# SPDX-License-Identifier: MIT
"""mlockall in the stress mix: all areas at once, so that it is known what is locked.

Who locks everything holds the locks of all areas until it has unlocked everything.  Racing accesses
and the calls of `spfemu.stress.mix.wild` go on meanwhile.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Errno, Madv, Mcl
from spfemu.mm.mlock import sys_mlockall, sys_munlockall
from spfemu.mm.syscalls import sys_madvise
from spfemu.stress.mix.access import owned_read
from spfemu.stress.mix.calls import owned_dontneed, owned_length, owned_mmap, owned_munmap
from spfemu.stress.mix.model import (
    NR_AREAS,
    UNITS,
    Area,
    Wrong,
    area_call_begin,
    area_call_end,
    area_trylock,
    area_unlock,
    expect,
    may_wait_begin,
    may_wait_end,
    stress_wrong,
    unit_address,
    unit_rights,
)
from spfemu.workloads.common import random_below

MCL_FLAGS = 8
"""Numbers that its flags make; the two that name neither what is nor what will be are refused."""


@kernel
def mlockall_call(cpu: int) -> int:
    """Take all areas if they are free, lock and unlock everything; 0 or the failure."""
    if may_wait_begin(cpu) == 0:
        return 0
    taken = 0
    while taken < NR_AREAS and area_trylock(cpu, taken):
        taken += 1
    result = 0
    if taken == NR_AREAS:
        result = lock_everything(cpu)
    while taken != 0:
        taken -= 1
        area_unlock(cpu, taken)
    may_wait_end(cpu)
    return result


@kernel
def lock_everything(cpu: int) -> int:
    """Lock, look at some units whether they are, unlock; 0 or the failure."""
    flags = random_below(cpu, MCL_FLAGS)
    expected = 0 if flags & (Mcl.CURRENT | Mcl.FUTURE) else -Errno.EINVAL
    result = expect(cpu, Wrong.CALL, 0, expected, sys_mlockall(cpu, flags))
    for _ in range(2):
        area = random_below(cpu, NR_AREAS)
        if result == 0 and expected == 0 and area != Area.WILD and area != Area.STACK:
            area_call_begin(cpu, area)
            result = locked_calls(cpu, area, random_below(cpu, UNITS), flags)
            area_call_end(cpu, area)
    unlocked = sys_munlockall(cpu)
    return expect(cpu, Wrong.CALL, 0, 0, unlocked) if result == 0 else result


@kernel
def locked_calls(cpu: int, area: int, unit: int, flags: int) -> int:
    """See that a unit is locked: MADV_DONTNEED is refused, the kind for locked memory is not."""
    result = 0
    if flags & Mcl.FUTURE:
        result = owned_munmap(cpu, area, unit, unit + 1)
        if result == 0:
            result = owned_mmap(cpu, area, unit, unit + 1)
    if result != 0:
        return result
    address = unit_address(area, unit)
    expected = -Errno.EINVAL if unit_rights(cpu, area, unit) >= 0 else -Errno.ENOMEM
    refused = sys_madvise(cpu, address, owned_length(area, unit, unit + 1), Madv.DONTNEED)
    if refused != expected:
        return stress_wrong(cpu, Wrong.CALL, address, expected, refused)
    if random_below(cpu, 2):
        result = owned_dontneed(cpu, area, unit, unit + 1, Madv.DONTNEED_LOCKED)
    return owned_read(cpu, area, unit) if result == 0 else result
