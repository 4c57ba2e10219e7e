# SPDX-License-Identifier: MIT
"""Calls of the stress mix on the file behind an owned area."""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT
from spfemu.mm.file_calls import sys_ftruncate, sys_msync, sys_pread, sys_pwrite
from spfemu.mm.flags import Errno, Msync
from spfemu.primitives import load, store, write_once
from spfemu.stress.mix.model import (
    UNITS,
    Area,
    AreaWord,
    UnitWord,
    Wrong,
    drop_begin,
    drop_end,
    expect,
    forget_unit,
    model_area,
    model_unit,
    unit_address,
    unit_rights,
)
from spfemu.workloads.common import random_below


@kernel
def file_call(cpu: int, area: int, first: int, last: int) -> int:
    """Cut, grow, write, read or write back the file; 0 or the failure."""
    kind = random_below(cpu, 8)
    if kind <= 1:
        return file_truncate(cpu, area, UNITS if kind else random_below(cpu, UNITS))
    if kind <= 3:
        return file_write(cpu, area, first)
    if kind <= 5:
        return file_read(cpu, area, first)
    address = unit_address(area, first)
    result = sys_msync(cpu, address, (last - first) << PAGE_SHIFT, Msync.SYNC)
    if result == -Errno.ENOMEM:
        return 0
    return expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def file_truncate(cpu: int, area: int, length: int) -> int:
    """Give the file another length: what is cut away is zero when the file grows again."""
    words = model_area(cpu, area)
    first = load(words + AreaWord.LENGTH)
    if length < first:
        first = length
    drop_begin(cpu, area, first, UNITS)
    result = sys_ftruncate(cpu, load(words + AreaWord.FILE), length << PAGE_SHIFT)
    write_once(words + AreaWord.LENGTH, length)
    for unit in range(first, UNITS):
        store(model_unit(cpu, area, unit) + UnitWord.FILE_VALUE, 0)
        forget_unit(cpu, area, unit)
    drop_end(cpu, area, first, UNITS, 0)
    return expect(cpu, Wrong.CALL, unit_address(area, first), 0, result)


@kernel
def file_write(cpu: int, area: int, unit: int) -> int:
    """Write to the file past the mappings, inside its length.

    Not where a private mapping is: a racing write makes a copy of the page, and nobody knows when.
    """
    words = model_area(cpu, area)
    if unit >= load(words + AreaWord.LENGTH):
        return 0
    if area == Area.PRIVATE_FILE and unit_rights(cpu, area, unit) >= 0:
        return 0
    value = random_below(cpu, 1 << 30) + 1
    result = sys_pwrite(cpu, load(words + AreaWord.FILE), unit << PAGE_SHIFT, value)
    store(model_unit(cpu, area, unit) + UnitWord.FILE_VALUE, value)
    return expect(cpu, Wrong.CALL, unit_address(area, unit), 0, result)


@kernel
def file_read(cpu: int, area: int, unit: int) -> int:
    """Read from the file past the mappings: zero behind its end."""
    file = load(model_area(cpu, area) + AreaWord.FILE)
    value = sys_pread(cpu, file, unit << PAGE_SHIFT)
    expected = load(model_unit(cpu, area, unit) + UnitWord.FILE_VALUE)
    return expect(cpu, Wrong.FILE, unit_address(area, unit), expected, value)
