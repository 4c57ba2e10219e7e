# SPDX-License-Identifier: MIT
"""Loads and stores of the stress mix, and what they must give."""

from spfemu.kernel import kernel
from spfemu.layout import CPU, WORD
from spfemu.mm.mmu import user_read, user_write
from spfemu.primitives import load, read_once, smp_load_acquire, smp_rmb, store
from spfemu.stress.mix.model import (
    UNITS,
    Area,
    AreaWord,
    Fill,
    OwnWord,
    UnitWord,
    Wrong,
    access_result,
    expect,
    fill_value,
    may_wait_begin,
    may_wait_end,
    model_area,
    model_own,
    model_unit,
    random_area,
    set_unit_value,
    stress_wrong,
    unit_address,
    unit_value,
)
from spfemu.workloads.common import random_below

CPU_SHIFT = 32
"""A racing value has the number of its CPU plus one above a random number."""


@kernel
def owned_read(cpu: int, area: int, unit: int) -> int:
    """Read the first word of a unit of an owned area."""
    address = unit_address(area, unit)
    expected = access_result(cpu, area, unit, 0)
    result, value = user_read(cpu, address)
    if result != expected:
        return stress_wrong(cpu, Wrong.READ, address, expected, result)
    if result != 0:
        return 0
    return owned_value(cpu, area, unit, Wrong.VALUE, value)


@kernel
def owned_value(cpu: int, area: int, unit: int, wrong: int, value: int) -> int:
    """Judge what has been found in the first word of a unit of an owned area."""
    words = model_unit(cpu, area, unit)
    filled = area == Area.SERVED and value == fill_value(unit)
    # what MADV_FREE gave up may be gone, once
    if load(words + UnitWord.WEAK) and (value == 0 or filled):
        return 0
    fill = load(words + UnitWord.FILL)
    if (filled and fill & Fill.MONITOR) or (value == 0 and fill & Fill.ZERO):
        # the page is there, and stays what it is
        store(words + UnitWord.VALUE, value)
        store(words + UnitWord.FILL, 0)
        return 0
    must = unit_value(cpu, area, unit)
    if fill & Fill.MONITOR:
        must = fill_value(unit)
    if value == must and fill == 0:
        return 0
    return stress_wrong(cpu, wrong, unit_address(area, unit), must, value)


@kernel
def owned_write(cpu: int, area: int, unit: int) -> int:
    """Write the first word of a unit of an owned area."""
    address = unit_address(area, unit)
    value = random_below(cpu, 1 << 30) + 1
    expected = access_result(cpu, area, unit, 1)
    protected = unit_protected(cpu, area, unit)
    result = user_write(cpu, address, value)
    if result == 0:
        set_unit_value(cpu, area, unit, value)
        error = check_protection(cpu, area, unit, protected)
        if error != 0:
            return error
    return expect(cpu, Wrong.WRITE, address, expected, result)


@kernel
def unit_protected(cpu: int, area: int, unit: int) -> int:
    """Count of a unit's protection before it is written to.

    The acquire pairs with the release in `protect_unit`: who finds it odd finds the page protected.
    """
    return smp_load_acquire(model_unit(cpu, area, unit) + UnitWord.PROTECTED)


@kernel
def check_protection(cpu: int, area: int, unit: int, before: int) -> int:
    """See that a page that has been written to was not protected all the time.

    The fence pairs with that of `end_protection`.
    """
    smp_rmb()
    words = model_unit(cpu, area, unit)
    if before & 1 and read_once(words + UnitWord.PROTECTED) == before:
        return stress_wrong(cpu, Wrong.PROTECTED, unit_address(area, unit), before + 1, before)
    return 0


@kernel
def owned_access(cpu: int, area: int) -> int:
    """Access a random unit of an owned area."""
    unit = random_below(cpu, UNITS)
    if random_below(cpu, 2):
        return owned_write(cpu, area, unit)
    return owned_read(cpu, area, unit)


@kernel
def racing_access(cpu: int) -> int:
    """Write or read this CPU's own word of any unit."""
    area = random_area(cpu)
    if area != Area.SERVED:
        return racing_access_in(cpu, area)
    if may_wait_begin(cpu) == 0:
        return 0
    result = racing_access_in(cpu, area)
    may_wait_end(cpu)
    return result


@kernel
def racing_access_in(cpu: int, area: int) -> int:
    """Do so in an area."""
    unit = random_below(cpu, UNITS)
    version = smp_load_acquire(model_area(cpu, area) + AreaWord.VERSION)
    if random_below(cpu, 2):
        return racing_write(cpu, area, unit, version)
    return racing_read(cpu, area, unit, version)


@kernel
def own_address(cpu: int, area: int, unit: int) -> int:
    """Virtual address of this CPU's word in a unit; the first word is that of owned accesses."""
    return unit_address(area, unit) + (1 + load(cpu + CPU.id)) * WORD


@kernel
def racing_write(cpu: int, area: int, unit: int, version: int) -> int:
    """Write this CPU's word."""
    value = ((load(cpu + CPU.id) + 1) << CPU_SHIFT) | random_below(cpu, 1 << 30)
    epoch = smp_load_acquire(model_unit(cpu, area, unit) + UnitWord.EPOCH)
    address = own_address(cpu, area, unit)
    protected = unit_protected(cpu, area, unit)
    result = user_write(cpu, address, value)
    if result == 0:
        own = model_own(cpu, area, unit)
        store(own + OwnWord.VALUE, value)
        store(own + OwnWord.EPOCH, epoch)
        error = check_protection(cpu, area, unit, protected)
        if error != 0:
            return error
    return racing_result(cpu, area, unit, version, 1, result)


@kernel
def racing_read(cpu: int, area: int, unit: int, version: int) -> int:
    """Read this CPU's word."""
    before = smp_load_acquire(model_unit(cpu, area, unit) + UnitWord.EPOCH)
    result, value = user_read(cpu, own_address(cpu, area, unit))
    if result == 0:
        error = racing_value(cpu, area, unit, before, value)
        if error != 0:
            return error
    return racing_result(cpu, area, unit, version, 0, result)


@kernel
def racing_value(cpu: int, area: int, unit: int, before: int, value: int) -> int:
    """Judge what a racing read has found; `before` is the unit's epoch before it.

    The fence pairs with that of drop_begin: who finds the word gone, finds the epoch moved.
    """
    smp_rmb()
    words = model_unit(cpu, area, unit)
    own = model_own(cpu, area, unit)
    written = load(own + OwnWord.VALUE)
    if value == written:
        return 0
    address = own_address(cpu, area, unit)
    epoch = read_once(words + UnitWord.EPOCH)
    weak = epoch & 1 or epoch != before or read_once(words + UnitWord.WEAK) or area == Area.WILD
    if value == 0:
        if weak == 0 and epoch == load(own + OwnWord.EPOCH):
            return stress_wrong(cpu, Wrong.LOST_WRITE, address, written, value)
        if weak == 0:
            store(own + OwnWord.VALUE, 0)
        return 0
    if weak and value >> CPU_SHIFT == load(cpu + CPU.id) + 1:
        return 0
    return stress_wrong(cpu, Wrong.RACING_VALUE, address, written, value)


@kernel
def racing_result(cpu: int, area: int, unit: int, version: int, write: int, result: int) -> int:
    """Judge how a racing access has ended, if no call on the area overlapped."""
    if version & 1 or area == Area.WILD:
        return 0
    expected = access_result(cpu, area, unit, write)
    smp_rmb()
    if read_once(model_area(cpu, area) + AreaWord.VERSION) != version:
        return 0
    return expect(cpu, Wrong.RACING_ACCESS, unit_address(area, unit), expected, result)
