# SPDX-License-Identifier: MIT
"""The queue of an rw_semaphore: who waits, and whom to wake (see rwsem.py).

The queue changes under `wait_lock` only.  A wake-up is chosen under it and made outside.
"""

from enum import IntEnum

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, RWSEM, RWSEM_WAITER, SYSTEM
from spfemu.mm.rwsem_words import (
    RWSEM_FLAG_HANDOFF,
    RWSEM_FLAG_WAITERS,
    RWSEM_READER_BIAS,
    RWSEM_WRITER_LOCKED,
    rwsem_set_reader_owned,
)
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_or,
    futex_wake,
    load,
    read_cycles,
    read_once,
    smp_mb,
    smp_store_release,
    store,
    write_once,
)

MAX_READERS_WAKEUP = 256
"""Readers woken at once."""


class WaiterType(IntEnum):
    """RWSEM_WAITER.type."""

    READ = 0
    WRITE = 1
    GRANTED = 2


class TaskWord(IntEnum):
    """Bits of RWSEM_WAITER.task."""

    WAITING = 1
    SIGNALLED = 2


class Wake(IntEnum):
    """Whom rwsem_mark_wake may wake (Linux: enum rwsem_wake_type)."""

    ANY = 0
    READERS = 1
    READ_OWNED = 2


@kernel
def rwsem_arm_waiter(waiter: int) -> None:
    """Make the futex word say that its CPU waits.

    The fence pairs with the one in send_fatal_signal: the word is armed before the flag is read.
    """
    write_once(waiter + RWSEM_WAITER.task, TaskWord.WAITING)
    smp_mb()


@slowpath
def send_fatal_signal(target: int) -> None:
    """Make killable waits of CPU `target` end with -EINTR, now and later (Linux: SIGKILL).

    Setting the flag comes before the change of the futex word; the waiter arms the word before it
    reads the flag (rwsem_arm_waiter).  So the waiter sees the flag, or the word is no longer what
    it is about to sleep on, or it sleeps and is woken.
    """
    write_once(target + CPU.fatal_signal, 1)
    smp_mb()
    atomic_fetch_or(target + CPU.waiter + RWSEM_WAITER.task, TaskWord.SIGNALLED)
    futex_wake(target + CPU.waiter + RWSEM_WAITER.task, 1)


@slowpath
def rwsem_add_waiter(cpu: int, sem: int, kind: int) -> None:
    """Queue this CPU's waiter at the end; its time before handoff begins."""
    waiter = cpu + CPU.waiter
    tail = load(sem + RWSEM.wait_tail)
    tick = load(load(cpu + CPU.system) + SYSTEM.cycles_per_tick)
    store(waiter + RWSEM_WAITER.cpu, cpu)
    store(waiter + RWSEM_WAITER.type, kind)
    store(waiter + RWSEM_WAITER.deadline, read_cycles() + tick)
    store(waiter + RWSEM_WAITER.next, 0)
    store(waiter + RWSEM_WAITER.prev, tail)
    if tail:
        store(tail + RWSEM_WAITER.next, waiter)
    else:
        store(sem + RWSEM.wait_head, waiter)
    store(sem + RWSEM.wait_tail, waiter)
    rwsem_arm_waiter(waiter)


@slowpath
def rwsem_del_waiter(sem: int, waiter: int) -> None:
    """Take a waiter out of the queue."""
    following = load(waiter + RWSEM_WAITER.next)
    prev = load(waiter + RWSEM_WAITER.prev)
    if prev:
        store(prev + RWSEM_WAITER.next, following)
    else:
        store(sem + RWSEM.wait_head, following)
    if following:
        store(following + RWSEM_WAITER.prev, prev)
    else:
        store(sem + RWSEM.wait_tail, prev)


@slowpath
def rwsem_mark_wake(cpu: int, sem: int, wake: int) -> tuple[int, int]:
    """Choose whom to wake: returns a list of granted readers and a writer, either may be 0.

    The queue is not empty.  Hand the result to rwsem_wake_up once wait_lock is released.
    """
    first = load(sem + RWSEM.wait_head)
    if load(first + RWSEM_WAITER.type) == WaiterType.WRITE:
        if wake != Wake.ANY:
            return 0, 0
        # Disarmed under wait_lock, while it is certain that the writer is still in this queue.
        write_once(first + RWSEM_WAITER.task, 0)
        return 0, first
    # Count the first reader in before looking whether a writer has stolen the lock; whoever holds
    # it for reading has ruled that out already.
    counted = 0
    if wake != Wake.READ_OWNED:
        if not rwsem_grant_first(cpu, sem, first):
            return 0, 0
        counted = 1
    return rwsem_grant_readers(sem, counted), 0


@slowpath
def rwsem_grant_first(cpu: int, sem: int, first: int) -> int:
    """Count the reader that is first in the queue into the lock; returns 0 if a writer has it.

    A first reader that has waited long enough asks for handoff then.
    """
    # Acquire: this CPU passes on to the readers what the last writer released.
    count = atomic_fetch_add(sem + RWSEM.count, RWSEM_READER_BIAS)
    if count & RWSEM_WRITER_LOCKED == 0:
        rwsem_set_reader_owned(sem, load(load(first + RWSEM_WAITER.cpu) + CPU.id) + 1)
        return 1
    undo = -RWSEM_READER_BIAS
    if count & RWSEM_FLAG_HANDOFF == 0 and read_cycles() > load(first + RWSEM_WAITER.deadline):
        undo += RWSEM_FLAG_HANDOFF
        count_vm_event(cpu, Event.RWSEM_HANDOFF)
    # No wake-up is lost if the writer let go meanwhile: it saw that CPUs wait, and comes here as
    # soon as it gets wait_lock.
    atomic_fetch_add(sem + RWSEM.count, undo)
    return 0


@slowpath
def rwsem_grant_readers(sem: int, counted: int) -> int:
    """Take all readers out of the queue into a list and count them into the lock.

    `counted` of them are counted already.  Writers between them are passed over: a phase of
    readers is for all.  Returns the first of the list.
    """
    granted = 0
    last = 0
    number = 0
    waiter = load(sem + RWSEM.wait_head)
    while waiter and number < MAX_READERS_WAKEUP:
        following = load(waiter + RWSEM_WAITER.next)
        if load(waiter + RWSEM_WAITER.type) == WaiterType.READ:
            rwsem_del_waiter(sem, waiter)
            store(waiter + RWSEM_WAITER.type, WaiterType.GRANTED)
            store(waiter + RWSEM_WAITER.next, 0)
            if last:
                store(last + RWSEM_WAITER.next, waiter)
            else:
                granted = waiter
            last = waiter
            number += 1
        waiter = following
    change = (number - counted) * RWSEM_READER_BIAS
    if load(sem + RWSEM.wait_head) == 0:
        change -= RWSEM_FLAG_WAITERS
    # The first of the queue was a reader and has got what it may have asked for.
    if read_once(sem + RWSEM.count) & RWSEM_FLAG_HANDOFF:
        change -= RWSEM_FLAG_HANDOFF
    # All are counted before the first is woken: it might release the lock at once.
    atomic_fetch_add(sem + RWSEM.count, change)
    return granted


# Waking; outside wait_lock


@slowpath
def rwsem_wake_up(cpu: int, readers: int, writer: int) -> None:
    """Wake what rwsem_mark_wake chose (Linux: wake_up_q).

    The list of readers is this CPU's alone until the word is cleared; then the node is its
    owner's again, so its link is read before.  A woken CPU may queue again at once: waking it once
    more does no harm, every sleeper looks again.
    """
    while readers:
        following = load(readers + RWSEM_WAITER.next)
        # Release pairs with the acquire in rwsem_wait_for_read.
        smp_store_release(readers + RWSEM_WAITER.task, 0)
        if readers != cpu + CPU.waiter:
            futex_wake(readers + RWSEM_WAITER.task, 1)
        readers = following
    if writer:
        futex_wake(writer + RWSEM_WAITER.task, 1)


@slowpath
def rwsem_wake(cpu: int, sem: int) -> None:
    """Wake the first in the queue after the lock came free."""
    readers = 0
    writer = 0
    spin_lock(cpu, sem + RWSEM.wait_lock)
    if load(sem + RWSEM.wait_head):
        readers, writer = rwsem_mark_wake(cpu, sem, Wake.ANY)
    spin_unlock(sem + RWSEM.wait_lock)
    rwsem_wake_up(cpu, readers, writer)


@slowpath
def rwsem_downgrade_wake(cpu: int, sem: int) -> None:
    """Let queued readers join if they are first; this CPU holds the lock for reading."""
    readers = 0
    writer = 0
    spin_lock(cpu, sem + RWSEM.wait_lock)
    if load(sem + RWSEM.wait_head):
        readers, writer = rwsem_mark_wake(cpu, sem, Wake.READ_OWNED)
    spin_unlock(sem + RWSEM.wait_lock)
    rwsem_wake_up(cpu, readers, writer)
