# SPDX-License-Identifier: MIT
"""What the areas of the stress mix must hold: a model in words beside the emulated machine.

All CPUs share NR_AREAS areas of UNITS units each in one mm: a unit is a page, in area HUGE a number
of them of which only the first is touched.  Two kinds of access are judged:

*Owned.*  A call works on an area whose lock (a word of the model, not of the kernel) its CPU holds.
Under the lock every access and every call has exactly one right result, whichever CPUs had the area
before.

*Racing.*  Without the lock, each CPU writes and reads a word of its own in any unit.  If no call on
the area overlapped, by its version, the rights that the model tells decide whether the access must
succeed.  The word is what this CPU wrote last, or gone; if no call has dropped the unit since, by
its epoch, it is not gone.

Versions and epochs are odd while a call is at work, as sequence counts are.

Faults in area SERVED may wait for a monitor, which any CPU is between two operations
(`spfemu.stress.mix.served`).  So that there is always one, a CPU begins what may wait only if
another one is not at that.  Nobody waits for the lock of an area, which who waits may hold.
"""

from enum import IntEnum, IntFlag
from typing import Self

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SHIFT, SYSTEM, WORD
from spfemu.mm.flags import Errno, Prot
from spfemu.mm.spinlock import spin_trylock, spin_unlock
from spfemu.mm.userfaultfd_register import UffdMode
from spfemu.primitives import (
    atomic_fetch_add,
    cmpxchg,
    load,
    read_once,
    smp_mb,
    smp_store_release,
    store,
    write_once,
)
from spfemu.workloads.common import random_below
from spfemu.workloads.parameters import Param, State

UNITS = 8
HUGE_UNIT_PAGES = 64
"""Pages of a unit of area HUGE, which is thus one huge page long."""
SMALL_FIRST = (1 << 30) - (3 * UNITS << PAGE_SHIFT)
"""The small areas lie side by side across a multiple of 1 GiB: they share VMAs and tables."""
HUGE_FIRST = 1 << 31
STACK_FIRST = 3 << 30
SOURCE_FIRST = 1 << 33
"""Pages that the monitor copies, a unit's each."""
FILLED = 1 << 40
"""First word of the first one; more than what accesses write."""
NOT_MAPPED = -1


class Area(IntEnum):
    """The areas, by what is mapped there."""

    ANON = 0
    OTHER_ANON = 1
    SHARED_FILE = 2
    PRIVATE_FILE = 3
    SHMEM = 4
    WILD = 5
    """Anonymous; calls take no lock of the model and overlap."""
    SERVED = 6
    """Anonymous; a userfaultfd serves some units of it."""
    HUGE = 7
    """Anonymous, large enough for khugepaged."""
    STACK = 8
    """Grows down: only the last unit is mapped, the others come by being touched."""


NR_AREAS = len(Area)


class MixWord(IntEnum):
    """Byte offsets in the words that belong to no area."""

    CPUS = 0
    """How many CPUs take part, and MAY_WAIT times how many of them may be waiting for a monitor."""
    SIZE = 16 * WORD


MAY_WAIT = 1 << 32


class AreaWord(IntEnum):
    """Byte offsets in an area's words."""

    LOCK = 0
    VERSION = 1 * WORD
    FILE = 2 * WORD
    """The open file, 0 for anonymous memory."""
    LENGTH = 3 * WORD
    """Units that the file holds."""
    CTX = 4 * WORD
    """The userfaultfd of area SERVED, 0 if none is open."""
    MONITOR = 5 * WORD
    """Lock of who is the monitor; it is not held while waiting for one."""
    SIZE = 16 * WORD


class UnitWord(IntEnum):
    """Byte offsets in a unit's words."""

    RIGHTS = 0
    """Prot bits, or NOT_MAPPED."""
    VALUE = 1 * WORD
    """The first word as the mapping has it, if that is not the file's."""
    FILE_VALUE = 2 * WORD
    """The first word of the file's page; of a shared mapping there is no other."""
    PRIVATE = 3 * WORD
    """1: a private mapping of a file has written to the unit since it was mapped or dropped."""
    EPOCH = 4 * WORD
    WEAK = 5 * WORD
    """1: racing words may be gone or another unit's (it was moved here), or vanish (MADV_FREE)."""
    MODE = 6 * WORD
    """How the userfaultfd serves the unit (UffdMode), 0: not."""
    FILL = 7 * WORD
    """What the unit may hold that nobody has seen since it was dropped (Fill); 0: VALUE."""
    PROTECTED = 8 * WORD
    """Odd while the userfaultfd protects the unit from being written to."""
    SIZE = 16 * WORD


class Fill(IntFlag):
    """What the page of a unit of area SERVED may have come with."""

    ZERO = 1
    MONITOR = 2
    """What the monitor fills in."""


class OwnWord(IntEnum):
    """Byte offsets in what a CPU knows of its word in a unit."""

    VALUE = 0
    EPOCH = 1 * WORD
    """The unit's epoch when it was written, odd if that tells nothing."""
    SIZE = 2 * WORD


AREAS_SIZE = NR_AREAS * int(AreaWord.SIZE)
UNITS_SIZE = NR_AREAS * UNITS * int(UnitWord.SIZE)
OWN_SIZE = NR_AREAS * UNITS * int(OwnWord.SIZE)


class Wrong(IntEnum):
    """What was not as it must be, and words for it; the workload fails with it as with an errno."""

    READ = 1001, "a read ended otherwise than the rights of the page demand"
    WRITE = 1002, "a write ended otherwise than the rights of the page demand"
    VALUE = 1003, "a page did not hold what was written to it"
    RACING_ACCESS = 1004, "an access ended otherwise than the rights demand, and no call overlapped"
    RACING_VALUE = 1005, "a CPU's own word held what that CPU had not written"
    LOST_WRITE = 1006, "a CPU's own word was gone, and no call had dropped it"
    CALL = 1007, "a call did not return what it must"
    NOTIFIER = 1009, "a secondary MMU read what was not there any more"
    DMA = 1010, "a page that may be written could not be pinned"
    FILE = 1011, "a file did not hold what was written to it"
    PROTECTED = 1012, "a page was written to that its monitor had protected"

    text: str

    def __new__(cls, code: int, text: str) -> Self:
        """Make a member from its code and its words."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.text = member.__doc__ = text
        return member


def model_words(nr_cpus: int) -> int:
    """Words that the model takes in a segment of so many CPUs."""
    return (MixWord.SIZE + AREAS_SIZE + UNITS_SIZE + nr_cpus * OWN_SIZE) // WORD


@kernel
def random_area(cpu: int) -> int:
    """Draw an area; half of the time the one that is hot in this round, for CPUs to meet there."""
    if random_below(cpu, 2):
        return load(load(cpu + Param.LEADER) + State.AREA)
    # more often one in which faults take long
    area = random_below(cpu, NR_AREAS + 1)
    return area if area < NR_AREAS else Area.SERVED


@kernel
def model_mix(cpu: int) -> int:
    """Address of the words that belong to no area."""
    return load(load(cpu + CPU.system) + SYSTEM.model)


@kernel
def model_area(cpu: int, area: int) -> int:
    """Address of an area's words."""
    return model_mix(cpu) + MixWord.SIZE + area * AreaWord.SIZE


@kernel
def model_unit(cpu: int, area: int, unit: int) -> int:
    """Address of a unit's words."""
    units = model_mix(cpu) + MixWord.SIZE + AREAS_SIZE
    return units + (area * UNITS + unit) * UnitWord.SIZE


@kernel
def model_own(cpu: int, area: int, unit: int) -> int:
    """Address of what this CPU knows of its word in a unit."""
    own = model_mix(cpu) + MixWord.SIZE + AREAS_SIZE + UNITS_SIZE
    own += load(cpu + CPU.id) * OWN_SIZE
    return own + (area * UNITS + unit) * OwnWord.SIZE


@kernel
def unit_shift(area: int) -> int:
    """Power of two of the bytes of a unit."""
    return PAGE_SHIFT + 6 if area == Area.HUGE else PAGE_SHIFT


@kernel
def unit_address(area: int, unit: int) -> int:
    """Virtual address of a unit, or of the end of the area."""
    if area == Area.HUGE:
        return HUGE_FIRST + (unit << unit_shift(area))
    if area == Area.STACK:
        return STACK_FIRST + (unit << PAGE_SHIFT)
    return SMALL_FIRST + ((area * UNITS + unit) << PAGE_SHIFT)


@kernel
def stress_wrong(cpu: int, wrong: int, address: int, expected: int, found: int) -> int:
    """Say what was found instead of what was expected; returns the failure, as an errno."""
    store(cpu + CPU.failed_at, address)
    store(cpu + CPU.expected, expected)
    store(cpu + CPU.found, found)
    return -wrong


@kernel
def expect(cpu: int, wrong: int, address: int, expected: int, found: int) -> int:
    """Compare; 0 or the failure."""
    if expected == found:
        return 0
    return stress_wrong(cpu, wrong, address, expected, found)


@kernel
def area_trylock(cpu: int, area: int) -> int:
    """Take an area's lock if it is free; 1 if taken."""
    return spin_trylock(cpu, model_area(cpu, area) + AreaWord.LOCK)


@kernel
def area_unlock(cpu: int, area: int) -> None:
    """Let the area go; what the model holds is published by the lock's release."""
    spin_unlock(model_area(cpu, area) + AreaWord.LOCK)


@kernel
def area_call_begin(cpu: int, area: int) -> None:
    """Say that a call is about to change the area.

    The fence pairs with those of racing accesses: who sees a change of the call's, sees the odd
    version.
    """
    version = model_area(cpu, area) + AreaWord.VERSION
    write_once(version, load(version) + 1)
    smp_mb()


@kernel
def area_call_end(cpu: int, area: int) -> None:
    """Say that it is done and the model up to date; the release pairs with racing acquires."""
    version = model_area(cpu, area) + AreaWord.VERSION
    smp_store_release(version, load(version) + 1)


@kernel
def drop_begin(cpu: int, area: int, first: int, last: int) -> None:
    """Say that racing words in units [first, last) are about to be dropped."""
    for unit in range(first, last):
        epoch = model_unit(cpu, area, unit) + UnitWord.EPOCH
        write_once(epoch, load(epoch) + 1)
    end_protection(cpu, area, first, last)


@kernel
def end_protection(cpu: int, area: int, first: int, last: int) -> None:
    """Say that units [first, last) may be written to from now on.

    The area and a monitor may do so at once, to the same effect; both together begin protection.
    The fence pairs with those of racing accesses and `check_protection`: who sees that a unit may
    be written to, or its words gone, sees that here.
    """
    for unit in range(first, last):
        protected = model_unit(cpu, area, unit) + UnitWord.PROTECTED
        count = read_once(protected)
        if count & 1:
            write_once(protected, count + 1)
    smp_mb()


@kernel
def drop_end(cpu: int, area: int, first: int, last: int, weak: int) -> None:
    """Say that they are gone; with `weak`, what the units hold now is no CPU's own for sure."""
    for unit in range(first, last):
        words = model_unit(cpu, area, unit)
        write_once(words + UnitWord.WEAK, weak)
        smp_store_release(words + UnitWord.EPOCH, load(words + UnitWord.EPOCH) + 1)


@kernel
def unit_rights(cpu: int, area: int, unit: int) -> int:
    """Prot bits of a unit, or NOT_MAPPED; exact under the lock or if no call overlaps."""
    return read_once(model_unit(cpu, area, unit) + UnitWord.RIGHTS)


@kernel
def access_result(cpu: int, area: int, unit: int, write: int) -> int:
    """What a load or store must return; on x86 any right to a page lets it be read."""
    rights = unit_rights(cpu, area, unit)
    if rights <= 0 or (write and rights & Prot.WRITE == 0):
        return -Errno.EFAULT
    words = model_area(cpu, area)
    if load(words + AreaWord.FILE) != 0 and unit >= read_once(words + AreaWord.LENGTH):
        return -Errno.EIO
    return 0


@kernel
def unit_value(cpu: int, area: int, unit: int) -> int:
    """What the first word of a unit must read as."""
    words = model_unit(cpu, area, unit)
    if load(model_area(cpu, area) + AreaWord.FILE) == 0 or load(words + UnitWord.PRIVATE):
        return load(words + UnitWord.VALUE)
    return load(words + UnitWord.FILE_VALUE)


@kernel
def set_unit_value(cpu: int, area: int, unit: int, value: int) -> None:
    """Note what the first word of a unit has become through the mapping."""
    words = model_unit(cpu, area, unit)
    if area == Area.SHARED_FILE:
        store(words + UnitWord.FILE_VALUE, value)
        return
    store(words + UnitWord.VALUE, value)
    store(words + UnitWord.PRIVATE, 1)
    store(words + UnitWord.FILL, 0)


@kernel
def forget_unit(cpu: int, area: int, unit: int) -> None:
    """Note that the mapping's own copy of a unit is gone: zero, or what the file holds."""
    words = model_unit(cpu, area, unit)
    store(words + UnitWord.VALUE, 0)
    store(words + UnitWord.PRIVATE, 0)
    if area == Area.SERVED:
        store(words + UnitWord.FILL, fills_of(load(words + UnitWord.MODE)))


@kernel
def any_mapped(cpu: int, area: int, first: int, last: int) -> int:
    """Tell whether any of units [first, last) is mapped."""
    for unit in range(first, last):
        if unit_rights(cpu, area, unit) >= 0:
            return 1
    return 0


@kernel
def advice_result(cpu: int, area: int, first: int, last: int) -> int:
    """What advice about units must return: holes are passed over and told of."""
    for unit in range(first, last):
        if unit_rights(cpu, area, unit) < 0:
            return -Errno.ENOMEM
    return 0


# Monitors


@kernel
def fills_of(mode: int) -> int:
    """What a missing page may come with, by how its unit is served.

    A monitor that is late may still fill what is not served for being missing any more, if it is
    served at all.
    """
    if mode == 0:
        return Fill.ZERO
    return Fill.MONITOR if mode & UffdMode.MISSING else Fill.ZERO | Fill.MONITOR


@kernel
def fill_value(unit: int) -> int:
    """First word of what the monitor fills in: the zero page for some units, data for others."""
    return 0 if unit % 4 == 3 else FILLED + unit


@kernel
def mix_join(cpu: int) -> None:
    """Take part, if this CPU does not yet."""
    if load(cpu + State.JOINED) == 0:
        store(cpu + State.JOINED, 1)
        atomic_fetch_add(model_mix(cpu) + MixWord.CPUS, 1)


@kernel
def may_wait_begin(cpu: int) -> int:
    """Begin what may wait for a monitor; 0 if all others are at that already."""
    word = model_mix(cpu) + MixWord.CPUS
    while True:
        found = read_once(word)
        if found // MAY_WAIT + 1 >= found % MAY_WAIT:
            return 0
        if cmpxchg(word, found, found + MAY_WAIT) == found:
            return 1


@kernel
def may_wait_end(cpu: int) -> None:
    """Be done with it."""
    atomic_fetch_add(model_mix(cpu) + MixWord.CPUS, -MAY_WAIT)


@kernel
def mix_try_leave(cpu: int) -> int:
    """Take part no longer, which 0: this CPU must not, as all others may be waiting."""
    word = model_mix(cpu) + MixWord.CPUS
    while True:
        found = read_once(word)
        waiting = found // MAY_WAIT
        if waiting != 0 and waiting + 1 >= found % MAY_WAIT:
            return 0
        if cmpxchg(word, found, found - 1) == found:
            store(cpu + State.JOINED, 0)
            return 1
