# SPDX-License-Identifier: MIT
"""The kernel's sleeping reader-writer lock, as it behaves in Linux 5.12 (kernel/locking/rwsem.c).

The count word, from the lowest bit:

    bit 0    a writer holds the lock
    bit 1    CPUs wait in the queue
    bit 2    handoff: the lock goes to the first in the queue, nobody may steal it
    bits 8.. number of readers (those that are about to find out that they must wait included)

Uncontended, each operation is one atomic on it.  A reader adds itself first and looks then; a
writer needs the whole word to be 0.  What does not get the lock that way goes through a slow path,
to spin (rwsem_spin.py) or to queue (rwsem_waiters.py):

- Writers spin while the owner is running, in line in the OSQ, and steal the lock when it comes
  free; waiters in the queue have to put up with that until the first of them asks for handoff,
  after one scheduler tick in the queue (4 ms).
- A reader steals the lock if no writer has it, none is due by handoff, and it is the only reader;
  if readers have it and somebody waits, it queues, so that readers cannot starve a writer.  There
  is no optimistic spinning of readers (removed in Linux 5.11).
- The queue is in order of arrival.  Wake-up is of the first writer, or of all queued readers at
  once, which are counted into the lock before they are woken.

Bits 1 and 2 and the queue change only under `wait_lock`.  Handoff is always asked for by, or for,
the first in the queue and is withdrawn when that one leaves, so the bit never outlives who asked
(as since Linux 5.16; 5.12 was less strict).  The check for too many readers is left out: there are
at most NR_CPUS_MAX.

Ordering: whoever gets the lock acquires, whoever lets go releases, always on `count`, which only
atomic read-modify-writes change; these continue a release sequence, so an acquire pairs with the
release of every earlier holder even when waiters' changes of other bits lie between.

Callers have interrupts enabled and are outside RCU read-side sections: every wait here serves
IPIs and is quiescent for RCU.
"""

from enum import IntEnum

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, RWSEM, RWSEM_WAITER
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import Errno
from spfemu.mm.rwsem_spin import (
    rwsem_can_spin_on_owner,
    rwsem_optimistic_spin,
    rwsem_spin_for_handoff,
)
from spfemu.mm.rwsem_waiters import (
    TaskWord,
    WaiterType,
    Wake,
    rwsem_add_waiter,
    rwsem_arm_waiter,
    rwsem_del_waiter,
    rwsem_downgrade_wake,
    rwsem_mark_wake,
    rwsem_wake,
    rwsem_wake_up,
)
from spfemu.mm.rwsem_words import (
    RWSEM_FLAG_HANDOFF,
    RWSEM_FLAG_WAITERS,
    RWSEM_LOCK_MASK,
    RWSEM_READ_FAILED_MASK,
    RWSEM_READER_BIAS,
    RWSEM_READER_OWNED,
    RWSEM_READER_SHIFT,
    RWSEM_WRITER_LOCKED,
    rwsem_clear_nonspinnable,
    rwsem_set_owner,
    rwsem_set_reader_owned,
)
from spfemu.mm.sched import cpu_sleep
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_acquire,
    atomic_fetch_add_release,
    atomic_fetch_and,
    atomic_fetch_or,
    cmpxchg_acquire,
    load,
    read_cycles,
    read_once,
    smp_load_acquire,
    write_once,
)


class WriteTry(IntEnum):
    """How an attempt of a queued writer ended."""

    FAILED = 0
    LOCKED = 1
    HANDOFF = 2


# Taking and releasing


@kernel
def down_read(cpu: int, sem: int) -> None:
    """Lock for reading; sleeps as long as it takes (Linux: down_read)."""
    # Acquire pairs with the release in up_write and downgrade_write.
    count = atomic_fetch_add_acquire(sem + RWSEM.count, RWSEM_READER_BIAS)
    if count & RWSEM_READ_FAILED_MASK:
        rwsem_down_read_slowpath(cpu, sem, count + RWSEM_READER_BIAS, 0)
    else:
        rwsem_set_reader_owned(sem, load(cpu + CPU.id) + 1)


@kernel
def down_read_killable(cpu: int, sem: int) -> int:
    """Lock for reading; returns 0, or -EINTR if a fatal signal came while it had to wait."""
    count = atomic_fetch_add_acquire(sem + RWSEM.count, RWSEM_READER_BIAS)
    if count & RWSEM_READ_FAILED_MASK:
        return rwsem_down_read_slowpath(cpu, sem, count + RWSEM_READER_BIAS, 1)
    rwsem_set_reader_owned(sem, load(cpu + CPU.id) + 1)
    return 0


@kernel
def down_read_trylock(cpu: int, sem: int) -> int:
    """Lock for reading if that needs no waiting; returns 1 if locked, else 0."""
    count = 0
    while count & RWSEM_READ_FAILED_MASK == 0:
        # Acquire as in down_read.
        found = cmpxchg_acquire(sem + RWSEM.count, count, count + RWSEM_READER_BIAS)
        if found == count:
            rwsem_set_reader_owned(sem, load(cpu + CPU.id) + 1)
            return 1
        count = found
    return 0


@kernel
def up_read(cpu: int, sem: int) -> None:
    """Release a lock held for reading."""
    # Release pairs with the acquire in down_write and rwsem_try_write_lock.
    count = atomic_fetch_add_release(sem + RWSEM.count, -RWSEM_READER_BIAS) - RWSEM_READER_BIAS
    vm_bug_on(count < 0, Bug.RWSEM_UNDERFLOW)
    if count & (RWSEM_LOCK_MASK | RWSEM_FLAG_WAITERS) == RWSEM_FLAG_WAITERS:
        rwsem_clear_nonspinnable(sem)
        rwsem_wake(cpu, sem)


@kernel
def down_write(cpu: int, sem: int) -> None:
    """Lock for writing; sleeps as long as it takes (Linux: down_write)."""
    # Acquire pairs with the release in up_read and up_write.
    if cmpxchg_acquire(sem + RWSEM.count, 0, RWSEM_WRITER_LOCKED) != 0:
        rwsem_down_write_slowpath(cpu, sem, 0)
    else:
        rwsem_set_owner(cpu, sem)


@kernel
def down_write_killable(cpu: int, sem: int) -> int:
    """Lock for writing; returns 0, or -EINTR if a fatal signal came while it was queued."""
    if cmpxchg_acquire(sem + RWSEM.count, 0, RWSEM_WRITER_LOCKED) != 0:
        return rwsem_down_write_slowpath(cpu, sem, 1)
    rwsem_set_owner(cpu, sem)
    return 0


@kernel
def down_write_trylock(cpu: int, sem: int) -> int:
    """Lock for writing if nobody holds the lock or waits for it; returns 1 if locked, else 0."""
    if cmpxchg_acquire(sem + RWSEM.count, 0, RWSEM_WRITER_LOCKED) != 0:
        return 0
    rwsem_set_owner(cpu, sem)
    return 1


@kernel
def up_write(cpu: int, sem: int) -> None:
    """Release a lock held for writing."""
    write_once(sem + RWSEM.owner, 0)
    # Release pairs with every acquire of `count`; it also keeps the clearing of owner before the
    # next owner's store.
    count = atomic_fetch_add_release(sem + RWSEM.count, -RWSEM_WRITER_LOCKED)
    vm_bug_on(count & RWSEM_WRITER_LOCKED == 0, Bug.RWSEM_UNDERFLOW)
    if count & RWSEM_FLAG_WAITERS:
        rwsem_wake(cpu, sem)


@kernel
def downgrade_write(cpu: int, sem: int) -> None:
    """Turn a lock held for writing into one held for reading; lets queued readers in."""
    # Release pairs with the acquire in down_read: readers see what was written under the lock.
    count = atomic_fetch_add_release(sem + RWSEM.count, RWSEM_READER_BIAS - RWSEM_WRITER_LOCKED)
    vm_bug_on(count & RWSEM_WRITER_LOCKED == 0, Bug.RWSEM_UNDERFLOW)
    rwsem_set_reader_owned(sem, load(cpu + CPU.id) + 1)
    if count & RWSEM_FLAG_WAITERS:
        rwsem_downgrade_wake(cpu, sem)


# Waiting to read


@slowpath
def rwsem_down_read_slowpath(cpu: int, sem: int, count: int, killable: int) -> int:
    """Get the lock for reading by stealing or queueing; `count` includes this reader.

    Returns 0, or -EINTR if `killable` and a fatal signal came.
    """
    rwsem_might_sleep(cpu)
    count_vm_event(cpu, Event.RWSEM_READ_SLOW)
    if rwsem_steal_read(cpu, sem, count):
        return 0
    spin_lock(cpu, sem + RWSEM.wait_lock)
    change = -RWSEM_READER_BIAS
    if load(sem + RWSEM.wait_head) == 0:
        # Nobody left to wait behind; acquire as in down_read, where the bias was added.
        count = smp_load_acquire(sem + RWSEM.count)
        if count & (RWSEM_WRITER_LOCKED | RWSEM_FLAG_HANDOFF) == 0:
            spin_unlock(sem + RWSEM.wait_lock)
            rwsem_set_reader_owned(sem, load(cpu + CPU.id) + 1)
            return 0
        change += RWSEM_FLAG_WAITERS
    rwsem_add_waiter(cpu, sem, WaiterType.READ)
    count = atomic_fetch_add(sem + RWSEM.count, change) + change
    readers = 0
    writer = 0
    # Two cases in which nobody else would wake the first in the queue: the lock came free and its
    # last holder saw our bias; or readers hold it and we are the first.
    if count & RWSEM_LOCK_MASK == 0:
        rwsem_clear_nonspinnable(sem)
        readers, writer = rwsem_mark_wake(cpu, sem, Wake.ANY)
    elif count & RWSEM_WRITER_LOCKED == 0 and change & RWSEM_FLAG_WAITERS:
        readers, writer = rwsem_mark_wake(cpu, sem, Wake.ANY)
    spin_unlock(sem + RWSEM.wait_lock)
    rwsem_wake_up(cpu, readers, writer)
    return rwsem_wait_for_read(cpu, sem, killable)


@slowpath
def rwsem_steal_read(cpu: int, sem: int, count: int) -> int:
    """Keep the lock that the fast path took past the queue, if that is fair; returns 1 if so.

    `count` is what the fast path's add, an acquire, made of the word.
    """
    readers = count >> RWSEM_READER_SHIFT
    if count & (RWSEM_WRITER_LOCKED | RWSEM_FLAG_HANDOFF):
        return 0
    if readers > 1 and read_once(sem + RWSEM.owner) & RWSEM_READER_OWNED:
        return 0
    rwsem_set_reader_owned(sem, load(cpu + CPU.id) + 1)
    # The first reader opens a phase of readers: those at the head of the queue come along.
    if readers == 1 and count & RWSEM_FLAG_WAITERS:
        rwsem_downgrade_wake(cpu, sem)
    return 1


@slowpath
def rwsem_wait_for_read(cpu: int, sem: int, killable: int) -> int:
    """Sleep until granted the lock; returns 0, or -EINTR if `killable` and signalled first."""
    task = cpu + CPU.waiter + RWSEM_WAITER.task
    while True:
        # Acquire pairs with the release in rwsem_wake_up, whose CPU has acquired `count`, and with
        # send_fatal_signal: a word that says SIGNALLED comes with the flag.
        word = smp_load_acquire(task)
        if word & TaskWord.WAITING == 0:
            return 0
        if killable and read_once(cpu + CPU.fatal_signal):
            if rwsem_cancel_wait(cpu, sem):
                return -Errno.EINTR
            killable = 0  # granted already: it is about to be woken
        count_vm_event(cpu, Event.RWSEM_READ_SLEEP)
        cpu_sleep(cpu, task, word, -1)


# Waiting to write


@slowpath
def rwsem_down_write_slowpath(cpu: int, sem: int, killable: int) -> int:
    """Get the lock for writing by spinning or queueing.

    Returns 0, or -EINTR if `killable` and a fatal signal came while queued.
    """
    rwsem_might_sleep(cpu)
    count_vm_event(cpu, Event.RWSEM_WRITE_SLOW)
    if rwsem_can_spin_on_owner(cpu, sem) and rwsem_optimistic_spin(cpu, sem):
        count_vm_event(cpu, Event.RWSEM_OPTIMISTIC)
        return 0
    readers = 0
    writer = 0
    spin_lock(cpu, sem + RWSEM.wait_lock)
    first = load(sem + RWSEM.wait_head) == 0
    rwsem_add_waiter(cpu, sem, WaiterType.WRITE)
    if first:
        atomic_fetch_or(sem + RWSEM.count, RWSEM_FLAG_WAITERS)
    else:
        # The lock may have come free, or readers may share it with those queued before us.
        count = read_once(sem + RWSEM.count)
        if count & RWSEM_LOCK_MASK == 0:
            readers, writer = rwsem_mark_wake(cpu, sem, Wake.ANY)
        elif count & RWSEM_WRITER_LOCKED == 0:
            readers, writer = rwsem_mark_wake(cpu, sem, Wake.READERS)
    if readers or writer:
        spin_unlock(sem + RWSEM.wait_lock)
        rwsem_wake_up(cpu, readers, writer)
        spin_lock(cpu, sem + RWSEM.wait_lock)
    return rwsem_wait_for_write(cpu, sem, killable)


@slowpath
def rwsem_wait_for_write(cpu: int, sem: int, killable: int) -> int:
    """Try and sleep in turn; called with wait_lock held, returns without it.

    Each try is made with the waiter armed and under wait_lock, so a wake-up between a failed try
    and falling asleep clears the word and the sleep does not happen.
    """
    waiter = cpu + CPU.waiter
    while True:
        rwsem_arm_waiter(waiter)
        tried = rwsem_try_write_lock(cpu, sem)
        spin_unlock(sem + RWSEM.wait_lock)
        if tried == WriteTry.LOCKED:
            return 0
        # Acquire: a word that says SIGNALLED comes with the flag (send_fatal_signal).
        word = smp_load_acquire(waiter + RWSEM_WAITER.task)
        if killable and read_once(cpu + CPU.fatal_signal):
            rwsem_cancel_wait(cpu, sem)
            return -Errno.EINTR
        let_go = tried == WriteTry.HANDOFF and rwsem_spin_for_handoff(cpu, sem)
        if word & TaskWord.WAITING and not let_go:
            count_vm_event(cpu, Event.RWSEM_WRITE_SLEEP)
            cpu_sleep(cpu, waiter + RWSEM_WAITER.task, word, -1)
        spin_lock(cpu, sem + RWSEM.wait_lock)


@slowpath
def rwsem_try_write_lock(cpu: int, sem: int) -> int:
    """Take the lock as a queued writer, or ask for handoff when first and out of patience.

    Returns a WriteTry; LOCKED has left the queue, HANDOFF says that nobody else gets the lock.
    """
    waiter = cpu + CPU.waiter
    first = load(sem + RWSEM.wait_head) == waiter
    alone = first and load(sem + RWSEM.wait_tail) == waiter
    impatient = first and read_cycles() > load(waiter + RWSEM_WAITER.deadline)
    count = read_once(sem + RWSEM.count)
    while True:
        handoff = count & RWSEM_FLAG_HANDOFF
        if handoff and not first:
            return WriteTry.FAILED
        if count & RWSEM_LOCK_MASK:
            if handoff:
                return WriteTry.HANDOFF
            if not impatient:
                return WriteTry.FAILED
            new = count | RWSEM_FLAG_HANDOFF
        else:
            new = (count | RWSEM_WRITER_LOCKED) & ~RWSEM_FLAG_HANDOFF
            if alone:
                new &= ~RWSEM_FLAG_WAITERS
        # Acquire pairs with the release in up_read and up_write.
        found = cmpxchg_acquire(sem + RWSEM.count, count, new)
        if found == count:
            break
        count = found
    if new & RWSEM_FLAG_HANDOFF:
        count_vm_event(cpu, Event.RWSEM_HANDOFF)
        return WriteTry.HANDOFF
    rwsem_del_waiter(sem, waiter)
    rwsem_set_owner(cpu, sem)
    return WriteTry.LOCKED


@slowpath
def rwsem_cancel_wait(cpu: int, sem: int) -> int:
    """Leave the queue because of a signal; returns 0 if the lock has been granted meanwhile.

    What the leaver asked for is withdrawn, and a wake-up that it may have got is passed on
    (Linux 5.16: rwsem_del_wake_waiter).
    """
    waiter = cpu + CPU.waiter
    readers = 0
    writer = 0
    spin_lock(cpu, sem + RWSEM.wait_lock)
    if load(waiter + RWSEM_WAITER.type) == WaiterType.GRANTED:
        spin_unlock(sem + RWSEM.wait_lock)
        return 0
    first = load(sem + RWSEM.wait_head) == waiter
    rwsem_del_waiter(sem, waiter)
    if first:
        atomic_fetch_and(sem + RWSEM.count, ~RWSEM_FLAG_HANDOFF)
    if load(sem + RWSEM.wait_head) == 0:
        atomic_fetch_and(sem + RWSEM.count, ~RWSEM_FLAG_WAITERS)
    elif first:
        readers, writer = rwsem_mark_wake(cpu, sem, Wake.ANY)
    spin_unlock(sem + RWSEM.wait_lock)
    rwsem_wake_up(cpu, readers, writer)
    return 1


@kernel
def rwsem_might_sleep(cpu: int) -> None:
    """Assert that this CPU may sleep (Linux: might_sleep)."""
    vm_bug_on(load(cpu + CPU.rcu_nesting) != 0, Bug.SLEEP_IN_ATOMIC)
    vm_bug_on(load(cpu + CPU.irqs_disabled) != 0, Bug.SLEEP_IN_ATOMIC)
