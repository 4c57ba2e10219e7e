# SPDX-License-Identifier: MIT
"""Optimistic spinning of an rw_semaphore's writers (see rwsem.py).

What a spinner reads are hints; the lock is taken by cmpxchg.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, RWSEM, SYSTEM
from spfemu.mm.osq import osq_lock, osq_relax, osq_unlock
from spfemu.mm.rwsem_words import (
    RWSEM_FLAG_HANDOFF,
    RWSEM_LOCK_MASK,
    RWSEM_READER_SHIFT,
    RWSEM_WRITER_LOCKED,
    OwnerState,
    rwsem_owner_running,
    rwsem_owner_state,
    rwsem_set_nonspinnable,
    rwsem_set_owner,
)
from spfemu.primitives import cmpxchg_acquire, load, read_cycles, read_once

READER_SPIN_MAX = 30
"""Readers that lengthen a spin on a reader-owned lock."""
READER_SPIN_SHARE = 8000
"""A tick (4 ms) divided by this is half a microsecond."""


@slowpath
def rwsem_can_spin_on_owner(cpu: int, sem: int) -> int:
    """Tell whether it is worth standing in line to spin.

    A reader's name is not looked at: it may be that of one long gone.
    """
    owner = read_once(sem + RWSEM.owner)
    state = rwsem_owner_state(owner)
    if state == OwnerState.WRITER:
        return rwsem_owner_running(cpu, owner)
    return state != OwnerState.NONSPINNABLE


@slowpath
def rwsem_optimistic_spin(cpu: int, sem: int) -> int:
    """Spin in the hope that the lock comes free soon; returns 1 if it was taken.

    Ends when the owning writer sleeps, when readers hold the lock too long, or after a scheduler
    tick, which stands for the kernel's need_resched.
    """
    until = read_cycles() + load(load(cpu + CPU.system) + SYSTEM.cycles_per_tick)
    if not osq_lock(cpu, sem + RWSEM.osq, until):
        return 0
    taken = 0
    before: int = OwnerState.NULL
    readers_until = 0
    while True:
        state = rwsem_spin_on_owner(cpu, sem, until)
        if state == OwnerState.NONSPINNABLE:
            break
        taken = rwsem_try_write_lock_unqueued(cpu, sem)
        now = read_cycles()
        if taken or now > until:
            break
        if state == OwnerState.READER:
            if before != OwnerState.READER:
                readers_until = now + rwsem_reader_spin_cycles(cpu, sem)
            elif now > readers_until:
                rwsem_set_nonspinnable(sem)
                break
        before = state
        osq_relax(cpu)
    osq_unlock(cpu, sem + RWSEM.osq)
    return taken


@slowpath
def rwsem_spin_on_owner(cpu: int, sem: int, until: int) -> int:
    """Spin while the same writer owns the lock and runs; returns the OwnerState then."""
    owner = read_once(sem + RWSEM.owner)
    state = rwsem_owner_state(owner)
    while state == OwnerState.WRITER:
        if not rwsem_owner_running(cpu, owner) or read_cycles() > until:
            return OwnerState.NONSPINNABLE
        osq_relax(cpu)
        now = read_once(sem + RWSEM.owner)
        if now != owner:
            return rwsem_owner_state(now)
    return state


@slowpath
def rwsem_spin_for_handoff(cpu: int, sem: int) -> int:
    """Having asked for handoff, wait for a running owner; returns 1 if it has let go."""
    until = read_cycles() + load(load(cpu + CPU.system) + SYSTEM.cycles_per_tick)
    state = rwsem_spin_on_owner(cpu, sem, until)
    osq_relax(cpu)
    return state == OwnerState.NULL


@kernel
def rwsem_try_write_lock_unqueued(cpu: int, sem: int) -> int:
    """Steal the lock from the queue if it is free and no handoff is due; returns 1 if taken."""
    count = read_once(sem + RWSEM.count)
    while count & (RWSEM_LOCK_MASK | RWSEM_FLAG_HANDOFF) == 0:
        # Acquire pairs with the release in up_read and up_write.
        found = cmpxchg_acquire(sem + RWSEM.count, count, count | RWSEM_WRITER_LOCKED)
        if found == count:
            rwsem_set_owner(cpu, sem)
            return 1
        count = found
    return 0


@kernel
def rwsem_reader_spin_cycles(cpu: int, sem: int) -> int:
    """Return how long to spin on readers: 10 us and half a microsecond for each, at most 25 us."""
    readers = read_once(sem + RWSEM.count) >> RWSEM_READER_SHIFT
    if readers > READER_SPIN_MAX:
        readers = READER_SPIN_MAX
    tick = load(load(cpu + CPU.system) + SYSTEM.cycles_per_tick)
    return tick * (20 + readers) // READER_SPIN_SHARE
