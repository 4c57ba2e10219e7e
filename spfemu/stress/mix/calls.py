# SPDX-License-Identifier: MIT
"""System calls of the stress mix on an area whose lock the caller holds."""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT
from spfemu.mm.flags import Errno, Madv, Map, Mremap, Prot
from spfemu.mm.mlock import sys_mlock2, sys_munlock
from spfemu.mm.mremap import sys_mremap
from spfemu.mm.syscalls import (
    sys_madvise,
    sys_mincore,
    sys_mmap,
    sys_mmap_file,
    sys_mprotect,
    sys_munmap,
)
from spfemu.primitives import load, store
from spfemu.stress.mix.files import file_call
from spfemu.stress.mix.model import (
    NOT_MAPPED,
    UNITS,
    Area,
    AreaWord,
    UnitWord,
    Wrong,
    advice_result,
    any_mapped,
    area_call_begin,
    area_call_end,
    area_trylock,
    area_unlock,
    drop_begin,
    drop_end,
    expect,
    forget_unit,
    model_area,
    model_unit,
    unit_address,
    unit_rights,
    unit_shift,
)
from spfemu.stress.mix.served import served_call
from spfemu.stress.mix.watchers import device_call, fork_call, notifier_call
from spfemu.workloads.common import random_below

READ_WRITE = int(Prot.READ | Prot.WRITE)
PRIVATE_ANON = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
SHARED_ANON = int(Map.SHARED | Map.ANONYMOUS | Map.FIXED)
STACK_FLAGS = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED | Map.GROWSDOWN)
REMOVE = int(Madv.REMOVE)
MOVE = int(Mremap.MAYMOVE | Mremap.FIXED)


@kernel
def owned_call(cpu: int, area: int) -> int:
    """Do a random call on random units of an owned area; 0 or the failure."""
    first = random_below(cpu, UNITS)
    last = first + 1 + random_below(cpu, UNITS - first)
    kind = random_below(cpu, 32)
    if kind == 0:
        return fork_call(cpu, area, first, last)
    if kind == 1:
        return notifier_call(cpu, area)
    if kind <= 3:
        return device_call(cpu, area, first)
    if kind <= 5 and area <= Area.OTHER_ANON:
        return move_call(cpu, area, first, last)
    area_call_begin(cpu, area)
    if area == Area.STACK:
        result = stack_call(cpu, kind)
    else:
        result = changing_call(cpu, area, kind, first, last)
    area_call_end(cpu, area)
    return result


@kernel
def changing_call(cpu: int, area: int, kind: int, first: int, last: int) -> int:
    """Do a call whose model is that of its area alone."""
    if area == Area.SERVED and (kind <= 10 or 14 <= kind <= 15 or 24 <= kind <= 25):
        result = served_call(cpu, first, last)
        # what has been protected by that stays so
        for _ in range(random_below(cpu, 2) * 2):
            if result == 0:
                result = owned_mprotect(cpu, area, first, last)
        return result
    if kind <= 12:
        return owned_mmap(cpu, area, first, last)
    if kind <= 15:
        return owned_munmap(cpu, area, first, last)
    if kind <= 19:
        return owned_mprotect(cpu, area, first, last)
    if kind == 20:
        return owned_remove(cpu, area, first, last)
    if kind <= 23:
        advice = Madv.DONTNEED_LOCKED if kind == 21 else Madv.DONTNEED
        return owned_dontneed(cpu, area, first, last, advice)
    if kind <= 26 and load(model_area(cpu, area) + AreaWord.FILE) != 0:
        return file_call(cpu, area, first, last)
    if kind <= 26 and area != Area.SHMEM:
        return owned_free(cpu, area, first, last)
    return owned_advice(cpu, area, kind, first, last)


@kernel
def owned_length(area: int, first: int, last: int) -> int:
    """Bytes of units [first, last)."""
    return (last - first) << unit_shift(area)


@kernel
def random_rights(cpu: int) -> int:
    """Draw rights; half of the time those that let everything be done."""
    rights = random_below(cpu, 8)
    return READ_WRITE if rights & Prot.EXEC else rights


@kernel
def owned_mmap(cpu: int, area: int, first: int, last: int) -> int:
    """Map units afresh."""
    rights = random_rights(cpu)
    address = unit_address(area, first)
    length = owned_length(area, first, last)
    file = load(model_area(cpu, area) + AreaWord.FILE)
    if random_below(cpu, 8) == 0 and any_mapped(cpu, area, first, last):
        flags = PRIVATE_ANON | Map.FIXED_NOREPLACE
        result = sys_mmap(cpu, address, length, rights, flags)
        return expect(cpu, Wrong.CALL, address, -Errno.EEXIST, result)
    if area != Area.SHARED_FILE:
        drop_begin(cpu, area, first, last)
    if file != 0:
        flags = Map.SHARED | Map.FIXED if area == Area.SHARED_FILE else Map.PRIVATE | Map.FIXED
        result = sys_mmap_file(cpu, address, length, rights, flags, file, first << PAGE_SHIFT)
    elif area == Area.SHMEM:
        result = sys_mmap(cpu, address, length, rights, SHARED_ANON)
    else:
        result = sys_mmap(cpu, address, length, rights, PRIVATE_ANON)
    set_mapped(cpu, area, first, last, rights)
    return expect(cpu, Wrong.CALL, address, address, result)


@kernel
def set_mapped(cpu: int, area: int, first: int, last: int, rights: int) -> None:
    """Note that units have been mapped afresh, or unmapped."""
    for unit in range(first, last):
        store(model_unit(cpu, area, unit) + UnitWord.RIGHTS, rights)
        store(model_unit(cpu, area, unit) + UnitWord.MODE, 0)
        forget_unit(cpu, area, unit)
    if area != Area.SHARED_FILE:
        drop_end(cpu, area, first, last, 0)


@kernel
def owned_munmap(cpu: int, area: int, first: int, last: int) -> int:
    """Unmap units, mapped or not."""
    address = unit_address(area, first)
    if area != Area.SHARED_FILE:
        drop_begin(cpu, area, first, last)
    result = sys_munmap(cpu, address, owned_length(area, first, last))
    set_mapped(cpu, area, first, last, NOT_MAPPED)
    return expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def owned_mprotect(cpu: int, area: int, first: int, last: int) -> int:
    """Change rights up to the first hole."""
    rights = random_rights(cpu)
    address = unit_address(area, first)
    result = sys_mprotect(cpu, address, owned_length(area, first, last), rights)
    unit = first
    while unit < last and unit_rights(cpu, area, unit) >= 0:
        store(model_unit(cpu, area, unit) + UnitWord.RIGHTS, rights)
        unit += 1
    return expect(cpu, Wrong.CALL, address, 0 if unit == last else -Errno.ENOMEM, result)


@kernel
def owned_dontneed(cpu: int, area: int, first: int, last: int, advice: int) -> int:
    """Drop units: memory without a shared file behind it is zero, or what a file has."""
    address = unit_address(area, first)
    drops = area != Area.SHARED_FILE and area != Area.SHMEM
    if drops:
        drop_begin(cpu, area, first, last)
    result = sys_madvise(cpu, address, owned_length(area, first, last), advice)
    if drops:
        for unit in range(first, last):
            forget_unit(cpu, area, unit)
        drop_end(cpu, area, first, last, 0)
    expected = advice_result(cpu, area, first, last)
    return expect(cpu, Wrong.CALL, address, expected, result)


@kernel
def owned_remove(cpu: int, area: int, first: int, last: int) -> int:
    """Make holes in the shared file behind units, which holes of the mapping are left out of."""
    address = unit_address(area, first)
    length = owned_length(area, first, last)
    if area != Area.SHARED_FILE and area != Area.SHMEM:
        expected = -Errno.EACCES if area == Area.PRIVATE_FILE else -Errno.EINVAL
        if any_mapped(cpu, area, first, last) == 0:
            expected = -Errno.ENOMEM
        return expect(cpu, Wrong.CALL, address, expected, sys_madvise(cpu, address, length, REMOVE))
    drop_begin(cpu, area, first, last)
    result = sys_madvise(cpu, address, length, REMOVE)
    for unit in range(first, last):
        if unit_rights(cpu, area, unit) >= 0:
            store(model_unit(cpu, area, unit) + UnitWord.FILE_VALUE, 0)
            forget_unit(cpu, area, unit)
    drop_end(cpu, area, first, last, 0)
    return expect(cpu, Wrong.CALL, address, advice_result(cpu, area, first, last), result)


@kernel
def owned_free(cpu: int, area: int, first: int, last: int) -> int:
    """Let reclaim drop units until they are written to."""
    address = unit_address(area, first)
    drop_begin(cpu, area, first, last)
    result = sys_madvise(cpu, address, owned_length(area, first, last), Madv.FREE)
    drop_end(cpu, area, first, last, 1)
    expected = advice_result(cpu, area, first, last)
    return expect(cpu, Wrong.CALL, address, expected, result)


@kernel
def owned_advice(cpu: int, area: int, kind: int, first: int, last: int) -> int:
    """Do what changes neither contents nor rights."""
    address = unit_address(area, first)
    length = owned_length(area, first, last)
    if kind == 27:
        # the flag, or none: locked when touched, or touched now
        result = sys_mlock2(cpu, address, length, random_below(cpu, 2))
        sys_munlock(cpu, address, length)
    elif kind == 28 and area != Area.HUGE:
        result = sys_madvise(cpu, address, length, Madv.PAGEOUT)
    elif kind == 29:
        advice = Madv.POPULATE_WRITE if random_below(cpu, 2) else Madv.POPULATE_READ
        result = sys_madvise(cpu, address, length, advice)
    elif kind == 30:
        advice = Madv.COLD if random_below(cpu, 2) else Madv.WILLNEED
        result = sys_madvise(cpu, address, length, advice)
    elif random_below(cpu, 4) == 0:
        result = sys_mincore(cpu, address, length, 0)
    elif random_below(cpu, 2):
        result = sys_madvise(cpu, address, length, random_hint(cpu))
    else:
        result = sys_madvise(cpu, address, length, Madv.COLLAPSE)
    if may_return(result):
        return 0
    return expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def random_hint(cpu: int) -> int:
    """Draw advice that only sets flags of VMAs, which splits and merges them."""
    kind = random_below(cpu, 8)
    if kind <= 1:
        return Madv.HUGEPAGE + kind
    if kind <= 4:
        return Madv.NORMAL + kind - 2
    if kind == 5:
        return Madv.DODUMP
    return Madv.DONTDUMP if kind == 6 else Madv.NOHUGEPAGE


@kernel
def may_return(result: int) -> int:
    """Tell whether a call that works on holes, forbidden or huge pages may end so."""
    errors = result == -Errno.ENOMEM or result == -Errno.EFAULT or result == -Errno.EINVAL
    return result == 0 or errors or result == -Errno.EAGAIN or result == -Errno.EBUSY


# Stacks


@kernel
def stack_call(cpu: int, kind: int) -> int:
    """Map the stack afresh or drop what it holds; where it ends now, nobody knows."""
    address = unit_address(Area.STACK, 0)
    length = owned_length(Area.STACK, 0, UNITS)
    drop_begin(cpu, Area.STACK, 0, UNITS)
    if kind & 1:
        result = sys_munmap(cpu, address, length)
        if result == 0:
            address = unit_address(Area.STACK, UNITS - 1)
            result = sys_mmap(cpu, address, 1 << PAGE_SHIFT, READ_WRITE, STACK_FLAGS)
            result = expect(cpu, Wrong.CALL, address, address, result)
    else:
        result = sys_madvise(cpu, address, length, Madv.DONTNEED)
        if result == -Errno.ENOMEM:
            result = 0
    if kind & 1 or unit_rights(cpu, Area.STACK, 0) == READ_WRITE:
        set_mapped(cpu, Area.STACK, 0, UNITS, READ_WRITE)
    else:
        drop_end(cpu, Area.STACK, 0, UNITS, 0)
    return expect(cpu, Wrong.CALL, address, 0, result)


# Moving


@kernel
def move_call(cpu: int, area: int, first: int, last: int) -> int:
    """Move units of one anonymous area over the same ones of the other, if that is free."""
    other = Area.OTHER_ANON if area == Area.ANON else Area.ANON
    if area_trylock(cpu, other) == 0:
        return 0
    area_call_begin(cpu, area)
    area_call_begin(cpu, other)
    drop_begin(cpu, area, first, last)
    drop_begin(cpu, other, first, last)
    result = owned_move(cpu, area, other, first, last)
    drop_end(cpu, other, first, last, 1)
    drop_end(cpu, area, first, last, 0)
    area_call_end(cpu, other)
    area_call_end(cpu, area)
    area_unlock(cpu, other)
    return result


@kernel
def owned_move(cpu: int, area: int, other: int, first: int, last: int) -> int:
    """Move; several VMAs or holes may refuse, after which the target is mapped afresh."""
    source = unit_address(area, first)
    target = unit_address(other, first)
    length = owned_length(area, first, last)
    flags = MOVE
    if random_below(cpu, 4) == 0:
        flags = MOVE | Mremap.DONTUNMAP
    result = sys_mremap(cpu, source, length, length, flags, target)
    if result == target:
        for unit in range(first, last):
            move_unit(cpu, area, other, unit, flags != MOVE)
        return 0
    if result != -Errno.EFAULT:
        return expect(cpu, Wrong.CALL, source, target, result)
    result = sys_munmap(cpu, source, length)
    if result == 0:
        result = sys_munmap(cpu, target, length)
    for unit in range(first, last):
        store(model_unit(cpu, area, unit) + UnitWord.RIGHTS, NOT_MAPPED)
        store(model_unit(cpu, other, unit) + UnitWord.RIGHTS, NOT_MAPPED)
        forget_unit(cpu, area, unit)
        forget_unit(cpu, other, unit)
    return expect(cpu, Wrong.CALL, target, 0, result)


@kernel
def move_unit(cpu: int, area: int, other: int, unit: int, keeps: int) -> None:
    """Note that a unit has gone to the other area; where there is a hole, nothing moves.

    With `keeps` (MREMAP_DONTUNMAP) an empty mapping stays behind.
    """
    words = model_unit(cpu, area, unit)
    if load(words + UnitWord.RIGHTS) < 0:
        return
    moved = model_unit(cpu, other, unit)
    store(moved + UnitWord.RIGHTS, load(words + UnitWord.RIGHTS))
    store(moved + UnitWord.VALUE, load(words + UnitWord.VALUE))
    if keeps == 0:
        store(words + UnitWord.RIGHTS, NOT_MAPPED)
    forget_unit(cpu, area, unit)
