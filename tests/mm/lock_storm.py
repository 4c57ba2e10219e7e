# SPDX-License-Identifier: MIT
"""Kernel functions that use a lock in random ways and notice when it does not exclude.

What they touch, from `data` on: a pair of words that every writer changes one after the other,
and how many CPUs are inside for reading and writing.
"""

from enum import IntEnum

from spfemu.kernel import kernel
from spfemu.layout import CPU, SYSTEM
from spfemu.mm.irq import cpu_relax_poll
from spfemu.mm.osq import osq_lock, osq_unlock
from spfemu.mm.rwsem import (
    down_read,
    down_read_killable,
    down_read_trylock,
    down_write,
    down_write_killable,
    down_write_trylock,
    downgrade_write,
    up_read,
    up_write,
)
from spfemu.mm.rwsem_waiters import send_fatal_signal
from spfemu.mm.sched import cond_resched, cpu_sleep
from spfemu.primitives import (
    atomic_fetch_add_relaxed,
    load,
    read_cycles,
    read_once,
    store,
    write_once,
)


class Data(IntEnum):
    """Byte offsets of the words; each on a line of its own except what is compared."""

    FIRST = 0
    SECOND = 64
    READERS = 128
    WRITERS = 136
    VIOLATIONS = 192
    SLEEP = 256


RANDOM_MASK = (1 << 62) - 1
NAP_NS = 20_000


@kernel
def random_next(cpu: int) -> int:
    """Return the next number, 0 to 2**62 - 1, of the CPU's xorshift generator."""
    x = load(cpu + CPU.random)
    x = x ^ ((x << 13) & RANDOM_MASK)
    x = x ^ (x >> 7)
    x = x ^ ((x << 17) & RANDOM_MASK)
    store(cpu + CPU.random, x)
    return x


@kernel
def dawdle(cpu: int, data: int) -> None:
    """Stay for a random while, sometimes asleep."""
    turns = random_next(cpu) % 16
    if turns == 0:
        cpu_sleep(cpu, data + Data.SLEEP, 0, NAP_NS)
    while turns > 0:
        cpu_relax_poll(cpu)
        turns -= 1


@kernel
def read_inside(cpu: int, data: int) -> None:
    """Be a reader: no writer may be inside and the pair may not change."""
    atomic_fetch_add_relaxed(data + Data.READERS, 1)
    wrong = read_once(data + Data.WRITERS)
    first = load(data + Data.FIRST)
    dawdle(cpu, data)
    if wrong or load(data + Data.SECOND) != first or read_once(data + Data.WRITERS):
        atomic_fetch_add_relaxed(data + Data.VIOLATIONS, 1)
    atomic_fetch_add_relaxed(data + Data.READERS, -1)


@kernel
def write_inside(cpu: int, data: int) -> None:
    """Be the writer: nobody else may be inside; adds one to both words, in turn."""
    wrong = atomic_fetch_add_relaxed(data + Data.WRITERS, 1)
    if wrong or read_once(data + Data.READERS):
        atomic_fetch_add_relaxed(data + Data.VIOLATIONS, 1)
    store(data + Data.FIRST, load(data + Data.FIRST) + 1)
    dawdle(cpu, data)
    store(data + Data.SECOND, load(data + Data.SECOND) + 1)
    atomic_fetch_add_relaxed(data + Data.WRITERS, -1)


@kernel
def survive(cpu: int) -> None:
    """Forget a fatal signal after a wait that it ended."""
    write_once(cpu + CPU.fatal_signal, 0)


@kernel
def storm_write(cpu: int, sem: int, data: int, how: int) -> int:
    """Write under the lock, taken in way `how` (0 to 3); returns 1 if it was got."""
    if how == 0:
        down_write(cpu, sem)
    elif how == 1:
        if not down_write_trylock(cpu, sem):
            return 0
    elif down_write_killable(cpu, sem) != 0:
        survive(cpu)
        return 0
    write_inside(cpu, data)
    if how == 3:
        downgrade_write(cpu, sem)
        read_inside(cpu, data)
        up_read(cpu, sem)
    else:
        up_write(cpu, sem)
    return 1


@kernel
def storm_read(cpu: int, sem: int, data: int, how: int) -> None:
    """Read under the lock, taken in way `how` (0 to 3)."""
    if how <= 1:
        down_read(cpu, sem)
    elif how == 2:
        if not down_read_trylock(cpu, sem):
            return
    elif down_read_killable(cpu, sem) != 0:
        survive(cpu)
        return
    read_inside(cpu, data)
    up_read(cpu, sem)


@kernel
def lock_storm(cpu: int, sem: int, data: int, rounds: int, writes: int) -> int:
    """Take the lock `rounds` times, `writes` of 16 for writing; returns how often it wrote."""
    written = 0
    while rounds > 0:
        rounds -= 1
        choice = random_next(cpu)
        if choice % 16 < writes:
            written += storm_write(cpu, sem, data, (choice >> 8) % 4)
        else:
            storm_read(cpu, sem, data, (choice >> 8) % 4)
        cond_resched(cpu)
    return written


@kernel
def osq_storm(cpu: int, lock: int, data: int, rounds: int, patience: int) -> int:
    """Take a spin queue `rounds` times, waiting `patience` cycles; returns how often it got it."""
    got = 0
    while rounds > 0:
        rounds -= 1
        if osq_lock(cpu, lock, read_cycles() + random_next(cpu) % 4096 * patience // 4096):
            write_inside(cpu, data)
            osq_unlock(cpu, lock)
            got += 1
        cond_resched(cpu)
    return got


@kernel
def hold_for_writing(cpu: int, sem: int, until: int) -> int:
    """Hold the lock as a running CPU until the word at `until` is set."""
    down_write(cpu, sem)
    while read_once(until) == 0:
        cpu_relax_poll(cpu)
    up_write(cpu, sem)
    return 1


@kernel
def read_until_stopped(cpu: int, sem: int, data: int) -> int:
    """Read under the lock, again and again, until the segment's stop word is set."""
    rounds = 0
    while read_once(load(cpu + CPU.system) + SYSTEM.stop) == 0:
        storm_read(cpu, sem, data, 0)
        rounds += 1
    return rounds


@kernel
def signal_storm(first: int, count: int, rounds: int) -> None:
    """Send `rounds` fatal signals to `count` CPUs from block `first` on, in turn."""
    target = 0
    while rounds > 0:
        rounds -= 1
        send_fatal_signal(first + target * CPU.SIZE)
        target += 1
        if target == count:
            target = 0
