# SPDX-License-Identifier: MIT
"""Who else sees an owned area: a child, a secondary MMU, a device with pinned pages."""

from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.mm.context import switch_mm
from spfemu.mm.direct_io import bio_map_user, bio_release_pages, dma_write
from spfemu.mm.exec import exec_mmap
from spfemu.mm.flags import Errno, Madv
from spfemu.mm.fork import exit_mm, sys_fork
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.mmu_notifier import mmu_notifier_register, mmu_notifier_unregister
from spfemu.mm.secondary_mmu import notifier_read
from spfemu.mm.syscalls import sys_madvise
from spfemu.primitives import load
from spfemu.stress.mix.access import owned_read, owned_value
from spfemu.stress.mix.model import (
    UNITS,
    Area,
    Wrong,
    access_result,
    advice_result,
    expect,
    set_unit_value,
    stress_wrong,
    unit_address,
    unit_shift,
)
from spfemu.workloads.common import random_below

REFUSED = -int(Errno.ENOMEM)
"""No slot is free for another child or subscriber."""


@kernel
def fork_call(cpu: int, area: int, first: int, last: int) -> int:
    """Fork; the child sees what the parent had and keeps its writes to itself.

    Sometimes units [first, last) are kept from it, or it gets them empty.
    """
    advice = Madv.NORMAL
    if area != Area.STACK and random_below(cpu, 4) == 0:
        advice = Madv.DONTFORK
        if area <= Area.OTHER_ANON or area >= Area.SERVED:
            advice = Madv.WIPEONFORK if random_below(cpu, 2) else Madv.DONTFORK
    result = advise(cpu, area, first, last, advice)
    if result == 0 and area == Area.SERVED:
        # the monitor does not serve the child, so nothing is to be missing
        result = read_all(cpu, area)
    if result == 0:
        result = child_call(cpu, area, first, last, advice)
    if result == 0 and advice != Madv.NORMAL:
        # the contraries follow: MADV_DOFORK, MADV_KEEPONFORK
        result = advise(cpu, area, first, last, advice + 1)
    return read_all(cpu, area) if result == 0 else result


@kernel
def advise(cpu: int, area: int, first: int, last: int, advice: int) -> int:
    """Give advice about units, if it is any."""
    if advice == Madv.NORMAL:
        return 0
    address = unit_address(area, first)
    result = sys_madvise(cpu, address, (last - first) << unit_shift(area), advice)
    return expect(cpu, Wrong.CALL, address, advice_result(cpu, area, first, last), result)


@kernel
def child_call(cpu: int, area: int, first: int, last: int, advice: int) -> int:
    """Fork, and be the child."""
    parent = load(cpu + CPU.mm)
    child = sys_fork(cpu)
    if child == REFUSED:
        return 0
    if child < 0:
        return stress_wrong(cpu, Wrong.CALL, unit_address(area, 0), 0, child)
    switch_mm(cpu, child)
    result = 0
    for unit in range(UNITS):
        if result == 0 and first <= unit < last and advice != Madv.NORMAL:
            result = kept_back(cpu, area, unit, advice)
        elif result == 0:
            result = owned_read(cpu, area, unit)
    if result == 0 and area != Area.SHARED_FILE and area != Area.SHMEM:
        for unit in range(UNITS):
            user_write(cpu, unit_address(area, unit), -1)
    if result == 0 and random_below(cpu, 4) == 0:
        result = exec_call(cpu, area)
    exit_mm(cpu, parent)
    return result


@kernel
def kept_back(cpu: int, area: int, unit: int, advice: int) -> int:
    """See that the child has nothing there, or (MADV_WIPEONFORK) nothing in it."""
    address = unit_address(area, unit)
    expected = -Errno.EFAULT
    if advice == Madv.WIPEONFORK:
        expected = access_result(cpu, area, unit, 0)
    result, value = user_read(cpu, address)
    if result != expected:
        return stress_wrong(cpu, Wrong.READ, address, expected, result)
    return expect(cpu, Wrong.VALUE, address, 0, value)


@kernel
def exec_call(cpu: int, area: int) -> int:
    """Let the child go on with a fresh mm, in which there is nothing."""
    if exec_mmap(cpu) != 0:
        return 0
    address = unit_address(area, 0)
    result, _value = user_read(cpu, address)
    return expect(cpu, Wrong.READ, address, -Errno.EFAULT, result)


@kernel
def read_all(cpu: int, area: int) -> int:
    """Read the first words of all units; 0 or the first failure."""
    for unit in range(UNITS):
        result = owned_read(cpu, area, unit)
        if result != 0:
            return result
    return 0


@kernel
def notifier_call(cpu: int, area: int) -> int:
    """Subscribe, and read through translations that are told of every change."""
    subscription = mmu_notifier_register(cpu, load(cpu + CPU.mm))
    if subscription == REFUSED:
        return 0
    if subscription < 0:
        return stress_wrong(cpu, Wrong.CALL, unit_address(area, 0), 0, subscription)
    result = 0
    for _ in range(2 * UNITS):
        unit = random_below(cpu, UNITS)
        if result == 0 and access_result(cpu, area, unit, 0) == 0:
            result = check_notifier(cpu, area, unit, subscription)
    mmu_notifier_unregister(cpu, subscription)
    return result


@kernel
def check_notifier(cpu: int, area: int, unit: int, subscription: int) -> int:
    """Read a unit as the subscriber; sometimes write to it first."""
    address = unit_address(area, unit)
    if random_below(cpu, 2) and access_result(cpu, area, unit, 1) == 0:
        value = random_below(cpu, 1 << 30) + 1
        result = user_write(cpu, address, value)
        if result != 0:
            return stress_wrong(cpu, Wrong.WRITE, address, 0, result)
        set_unit_value(cpu, area, unit, value)
    result, value = notifier_read(cpu, subscription, address)
    if result == -Errno.EFAULT:
        # it looks for the right to read, which a page that may only be written has not
        return 0
    if result != 0:
        return stress_wrong(cpu, Wrong.NOTIFIER, address, 0, result)
    return owned_value(cpu, area, unit, Wrong.NOTIFIER, value)


@kernel
def device_call(cpu: int, area: int, unit: int) -> int:
    """Pin a page, let a device write to it, unpin: the mapping shows it."""
    address = unit_address(area, unit)
    expected = access_result(cpu, area, unit, 1)
    pages = bio_map_user(cpu, address, 1)
    if pages <= 0:
        # since 6.5 no pin lets a stack grow
        may_fail = expected != 0 or area == Area.STACK
        return 0 if may_fail else stress_wrong(cpu, Wrong.DMA, address, 1, pages)
    value = random_below(cpu, 1 << 30) + 1
    dma_write(cpu, 0, value)
    set_unit_value(cpu, area, unit, value)
    result = owned_read(cpu, area, unit)
    bio_release_pages(cpu)
    return result
