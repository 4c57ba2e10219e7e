# SPDX-License-Identifier: MIT
"""A userfaultfd in the stress mix: its calls, and who is the monitor.

The area's owner opens and closes the userfaultfd, registers units and protects them.  Messages are
read by any CPU between two operations, without the area: its owner may be who waits.

A monitor fills a page always with the same data or with the zero page, so it is known what a
page holds that has been missing while it was served.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.flags import Errno, Map, Prot
from spfemu.mm.mcopy import (
    UffdCopy,
    userfaultfd_copy,
    userfaultfd_writeprotect,
    userfaultfd_zeropage,
)
from spfemu.mm.mmu import user_write
from spfemu.mm.sched import cond_resched
from spfemu.mm.spinlock import spin_trylock, spin_unlock
from spfemu.mm.syscalls import sys_mmap
from spfemu.mm.userfaultfd import MSG_WP, sys_userfaultfd, userfaultfd_read, userfaultfd_wake
from spfemu.mm.userfaultfd_register import (
    UffdMode,
    userfaultfd_register,
    userfaultfd_release,
    userfaultfd_unregister,
)
from spfemu.primitives import (
    cpu_relax,
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
    write_once,
)
from spfemu.stress.mix.access import owned_read
from spfemu.stress.mix.model import (
    SOURCE_FIRST,
    UNITS,
    Area,
    AreaWord,
    UnitWord,
    Wrong,
    access_result,
    any_mapped,
    end_protection,
    expect,
    fill_value,
    fills_of,
    mix_try_leave,
    model_area,
    model_unit,
    stress_wrong,
    unit_address,
)
from spfemu.workloads.common import random_below
from spfemu.workloads.parameters import State

READ_WRITE = int(Prot.READ | Prot.WRITE)
PRIVATE_ANON = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
MODES = 3
"""UffdMode has so many values that ask for something, from 1 on."""
DONTWAKE = int(UffdCopy.DONTWAKE)


@kernel
def served_setup(cpu: int) -> int:
    """Make the pages that monitors copy."""
    result = sys_mmap(cpu, SOURCE_FIRST, UNITS << PAGE_SHIFT, READ_WRITE, PRIVATE_ANON)
    for unit in range(UNITS):
        if result >= 0:
            result = user_write(cpu, SOURCE_FIRST + (unit << PAGE_SHIFT), fill_value(unit))
    return result


# Monitors


@kernel
def serve_message(cpu: int) -> int:
    """Read a message and do something about it, unless another CPU is at that; 0 or the failure."""
    words = model_area(cpu, Area.SERVED)
    if read_once(words + AreaWord.CTX) == 0 or spin_trylock(cpu, words + AreaWord.MONITOR) == 0:
        return 0
    result = 0
    # pairs with the release in open_served
    ctx = smp_load_acquire(words + AreaWord.CTX)
    if ctx != 0:
        error, address, flags = userfaultfd_read(cpu, ctx, 0)
        if error == 0:
            result = serve(cpu, ctx, address, flags)
    spin_unlock(words + AreaWord.MONITOR)
    return result


@kernel
def serve(cpu: int, ctx: int, address: int, flags: int) -> int:
    """Resolve a fault, or let it look again; 0 or the failure."""
    unit = (address - unit_address(Area.SERVED, 0)) >> PAGE_SHIFT
    result = -Errno.ENOENT
    if random_below(cpu, 8) != 0:
        if flags & MSG_WP:
            end_protection(cpu, Area.SERVED, unit, unit + 1)
            result = userfaultfd_writeprotect(cpu, ctx, address, PAGE_SIZE, 0)
        else:
            result = fill_unit(cpu, ctx, unit)
    if result == -Errno.ENOENT or result == -Errno.EEXIST:
        # Who waits looks again: it is not served any more, or the page has come without a monitor,
        # while what is mapped there now was not served yet.
        result = userfaultfd_wake(cpu, ctx, address, PAGE_SIZE)
    return 0 if result == PAGE_SIZE else expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def fill_unit(cpu: int, ctx: int, unit: int) -> int:
    """Fill a missing page and wake who waits for it, in one step or two; bytes or an errno."""
    address = unit_address(Area.SERVED, unit)
    source = SOURCE_FIRST + (unit << PAGE_SHIFT)
    mode = random_below(cpu, 4)
    if fill_value(unit) == 0:
        mode = mode & DONTWAKE
        result = userfaultfd_zeropage(cpu, ctx, address, PAGE_SIZE, mode)
    else:
        result = userfaultfd_copy(cpu, ctx, address, source, PAGE_SIZE, mode)
        if result == -Errno.EINVAL:
            # it cannot come protected where nothing is
            mode = mode & DONTWAKE
            result = userfaultfd_copy(cpu, ctx, address, source, PAGE_SIZE, mode)
    if result == PAGE_SIZE and mode & DONTWAKE:
        userfaultfd_wake(cpu, ctx, address, PAGE_SIZE)
    return result


@kernel
def mix_leave(cpu: int) -> int:
    """Take part no longer; who is the last that does not wait serves those who do until then."""
    result = 0
    while load(cpu + State.JOINED) and mix_try_leave(cpu) == 0:
        error = serve_message(cpu)
        result = error if error < 0 else result
        cond_resched(cpu)
        cpu_relax()
    return result


# Calls of the owner


@kernel
def served_call(cpu: int, first: int, last: int) -> int:
    """Do a call on the userfaultfd, for units of the area, which this CPU owns; or the failure."""
    ctx = load(model_area(cpu, Area.SERVED) + AreaWord.CTX)
    kind = random_below(cpu, 16)
    if ctx == 0:
        return open_served(cpu)
    if kind == 0:
        return close_served(cpu, ctx)
    if kind <= 6:
        return register_units(cpu, ctx, first, last)
    if kind == 7:
        return unregister_units(cpu, ctx, first, last)
    if kind <= 9:
        return prefill_unit(cpu, ctx, first)
    if kind <= 13:
        return protect_unit(cpu, ctx, first)
    address = unit_address(Area.SERVED, first)
    length = (last - first) << PAGE_SHIFT
    if kind == 14:
        return expect(cpu, Wrong.CALL, address, 0, userfaultfd_wake(cpu, ctx, address, length))
    end_protection(cpu, Area.SERVED, first, last)
    result = userfaultfd_writeprotect(cpu, ctx, address, length, DONTWAKE & random_below(cpu, 2))
    # it takes one VMA that is served so
    return 0 if result == -Errno.ENOENT else expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def open_served(cpu: int) -> int:
    """Open a userfaultfd and let it serve what is mapped; nothing if none is left."""
    ctx = sys_userfaultfd(cpu)
    if ctx < 0:
        return expect(cpu, Wrong.CALL, unit_address(Area.SERVED, 0), -Errno.EMFILE, ctx)
    smp_store_release(model_area(cpu, Area.SERVED) + AreaWord.CTX, ctx)
    return register_units(cpu, ctx, 0, UNITS)


@kernel
def close_served(cpu: int, ctx: int) -> int:
    """Close it, unless a monitor is at work."""
    words = model_area(cpu, Area.SERVED)
    if spin_trylock(cpu, words + AreaWord.MONITOR) == 0:
        return 0
    write_once(words + AreaWord.CTX, 0)
    spin_unlock(words + AreaWord.MONITOR)
    end_protection(cpu, Area.SERVED, 0, UNITS)
    userfaultfd_release(cpu, ctx)
    set_served(cpu, 0, UNITS, 0)
    return 0


@kernel
def register_units(cpu: int, ctx: int, first: int, last: int) -> int:
    """Let it serve units in some mode, beside those in which it does; holes stay holes."""
    mode = 1 + random_below(cpu, MODES)
    address = unit_address(Area.SERVED, first)
    result = userfaultfd_register(cpu, ctx, address, (last - first) << PAGE_SHIFT, mode)
    if any_mapped(cpu, Area.SERVED, first, last) == 0:
        return nothing_there(cpu, address, result)
    set_served(cpu, first, last, mode)
    return expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def unregister_units(cpu: int, ctx: int, first: int, last: int) -> int:
    """Serve units no longer, whether they were served or not."""
    address = unit_address(Area.SERVED, first)
    end_protection(cpu, Area.SERVED, first, last)
    result = userfaultfd_unregister(cpu, ctx, address, (last - first) << PAGE_SHIFT)
    if any_mapped(cpu, Area.SERVED, first, last) == 0:
        return nothing_there(cpu, address, result)
    set_served(cpu, first, last, 0)
    return expect(cpu, Wrong.CALL, address, 0, result)


@kernel
def nothing_there(cpu: int, address: int, result: int) -> int:
    """See that a call has refused an empty range, which it tells by what is mapped behind."""
    return 0 if result == -Errno.ENOMEM else expect(cpu, Wrong.CALL, address, -Errno.EINVAL, result)


@kernel
def set_served(cpu: int, first: int, last: int, mode: int) -> None:
    """Note that mapped units are served in one more mode, or (0) not at all.

    Pages that nobody has looked at may have come before or behind that.
    """
    for unit in range(first, last):
        words = model_unit(cpu, Area.SERVED, unit)
        fill = load(words + UnitWord.FILL)
        if load(words + UnitWord.RIGHTS) >= 0:
            now = load(words + UnitWord.MODE) | mode if mode else 0
            store(words + UnitWord.MODE, now)
            store(words + UnitWord.FILL, fill | fills_of(now) if fill else 0)


@kernel
def prefill_unit(cpu: int, ctx: int, unit: int) -> int:
    """Fill a unit that nobody may have asked for."""
    words = model_unit(cpu, Area.SERVED, unit)
    address = unit_address(Area.SERVED, unit)
    result = fill_unit(cpu, ctx, unit)
    if load(words + UnitWord.MODE) == 0:
        return expect(cpu, Wrong.CALL, address, -Errno.ENOENT, result)
    if result == -Errno.EEXIST:
        return 0
    missing = load(words + UnitWord.FILL) or load(words + UnitWord.WEAK)
    if result != PAGE_SIZE or missing == 0:
        return stress_wrong(cpu, Wrong.CALL, address, -Errno.EEXIST, result)
    store(words + UnitWord.VALUE, fill_value(unit))
    store(words + UnitWord.FILL, 0)
    return 0


@kernel
def protect_unit(cpu: int, ctx: int, unit: int) -> int:
    """Protect a unit from writes, which then wait for a monitor; see `check_protection`.

    Only what is there is protected.
    """
    words = model_unit(cpu, Area.SERVED, unit)
    address = unit_address(Area.SERVED, unit)
    serves = load(words + UnitWord.MODE) & UffdMode.WP
    there = serves and access_result(cpu, Area.SERVED, unit, 0) == 0
    if there:
        result = owned_read(cpu, Area.SERVED, unit)
        if result != 0:
            return result
    monitor = model_area(cpu, Area.SERVED) + AreaWord.MONITOR
    if spin_trylock(cpu, monitor) == 0:
        return 0
    result = userfaultfd_writeprotect(cpu, ctx, address, PAGE_SIZE, UffdCopy.WP)
    if there and load(words + UnitWord.WEAK) == 0:
        count = load(words + UnitWord.PROTECTED)
        # pairs with the acquire in unit_protected
        smp_store_release(words + UnitWord.PROTECTED, count | 1)
    spin_unlock(monitor)
    return expect(cpu, Wrong.CALL, address, 0 if serves else -Errno.ENOENT, result)
