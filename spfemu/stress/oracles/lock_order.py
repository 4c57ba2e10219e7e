# SPDX-License-Identifier: MIT
"""LOCK_ORDER: locks are taken in one order by everybody, and given back by who took them.

A validator in the way of Linux's lockdep (kernel/locking/lockdep.c).  Each CPU keeps a list of the
locks that it holds.  Before it may wait for a lock, the pairs (class held, class wanted) are added
to those that any CPU has been seen with, in STRESS.orders; together with the documented ones they
must not form a cycle.  So two CPUs need not meet to show that they could wait for each other.  A
trylock waits for nothing: it adds no pair, but is held.  Locks of the workload are none of this.

Two locks of a class are held where docs/locking.md has it: see may_nest.

The lists are for the watchdog too, which asks them who holds what somebody waits for.
"""

from spfemu.kernel import around, kernel, proceed, slowpath
from spfemu.layout import CPU, HELD_MAX, HELD_WORDS, LOCK_CLASSES, STRESS, STRESS_CPU, VMA, WORD
from spfemu.primitives import atomic_fetch_or, load, read_once, store, this_cpu
from spfemu.stress.lock_class import (
    LAST_DOCUMENTED,
    LAST_SLEEPING,
    LockClass,
    rwsem_class,
    spinlock_class,
)
from spfemu.stress.lock_fault import CLASS_BITS, LockFault
from spfemu.stress.promises import Promise
from spfemu.stress.violation import stress_violation

ENTRY = HELD_WORDS * WORD
CLASS = WORD
WRITE = 2 * WORD
DOCUMENTED = (2 << LAST_DOCUMENTED) - 1

# The list of held locks


@slowpath
def lock_hold(cpu: int, lock: int, kind: int, write: int) -> None:
    """Note that this CPU holds a lock from now on."""
    own = load(cpu + CPU.stress)
    number = load(own + STRESS_CPU.nr_held)
    if number == HELD_MAX:
        store(own + STRESS_CPU.lost_held, load(own + STRESS_CPU.lost_held) + 1)
        return
    entry = own + STRESS_CPU.held + number * ENTRY
    store(entry, lock)
    store(entry + CLASS, kind)
    store(entry + WRITE, write)
    store(own + STRESS_CPU.nr_held, number + 1)


@kernel
def held_entry(own: int, lock: int, write: int) -> int:
    """Address of the note on a lock that this CPU holds, the newest; 0 if it does not."""
    entry = own + STRESS_CPU.held + load(own + STRESS_CPU.nr_held) * ENTRY
    for _ in range(load(own + STRESS_CPU.nr_held)):
        entry -= ENTRY
        if load(entry) == lock and load(entry + WRITE) == write:
            return entry
    return 0


@slowpath
def lock_release(cpu: int, lock: int, kind: int, write: int) -> None:
    """Note that this CPU is about to release a lock, which it must hold (Linux: lock_release)."""
    own = load(cpu + CPU.stress)
    entry = held_entry(own, lock, write)
    if entry != 0:
        held_remove(own, entry)
    elif load(own + STRESS_CPU.lost_held) != 0:
        store(own + STRESS_CPU.lost_held, load(own + STRESS_CPU.lost_held) - 1)
    else:
        lock_fault(LockFault.NOT_HELD, lock, kind, kind)


@kernel
def lock_forget(cpu: int, lock: int, write: int) -> None:
    """Take a lock out of the list if it is there."""
    own = load(cpu + CPU.stress)
    entry = held_entry(own, lock, write)
    if entry != 0:
        held_remove(own, entry)


@kernel
def held_remove(own: int, entry: int) -> None:
    """Take a note out of the list; the last one takes its place."""
    number = load(own + STRESS_CPU.nr_held) - 1
    last = own + STRESS_CPU.held + number * ENTRY
    for word in range(HELD_WORDS):
        store(entry + word * WORD, load(last + word * WORD))
    store(own + STRESS_CPU.nr_held, number)


@kernel
def held_of_class(own: int, kind: int, write: int) -> int:
    """Count the locks of a class that this CPU holds, all or only those for writing."""
    count = 0
    entry = own + STRESS_CPU.held
    for _ in range(load(own + STRESS_CPU.nr_held)):
        if load(entry + CLASS) == kind and (write == 0 or load(entry + WRITE) != 0):
            count += 1
        entry += ENTRY
    return count


# Judgement


@slowpath
def lock_fault(fault: int, lock: int, held: int, wanted: int) -> None:
    """Report a fault with a lock: of which kind, and the classes held and wanted."""
    words = (fault << (2 * CLASS_BITS)) | (held << CLASS_BITS) | wanted
    stress_violation(Promise.LOCK_ORDER, lock, words)


@slowpath
def lock_acquire(cpu: int, lock: int, kind: int) -> None:
    """See that this CPU may wait for a lock, with what it holds (Linux: lock_acquire)."""
    own = load(cpu + CPU.stress)
    if kind <= LAST_SLEEPING or kind == LockClass.RCU:
        lock_might_sleep(own, lock, kind)
    orders = load(own + STRESS_CPU.stress) + STRESS.orders
    entry = own + STRESS_CPU.held
    for _ in range(load(own + STRESS_CPU.nr_held)):
        held = load(entry + CLASS)
        if held == kind:
            if load(entry) == lock or may_nest(own, kind) == 0:
                lock_fault(LockFault.NESTED, lock, held, kind)
        elif (read_once(orders + held * WORD) >> kind) & 1 == 0:
            note_order(orders, lock, held, kind)
        entry += ENTRY


@slowpath
def lock_might_sleep(own: int, lock: int, kind: int) -> None:
    """See that nothing is held with which one must not sleep (Linux: might_sleep)."""
    entry = own + STRESS_CPU.held
    for _ in range(load(own + STRESS_CPU.nr_held)):
        if load(entry + CLASS) > LAST_SLEEPING:
            lock_fault(LockFault.SLEEPS, lock, load(entry + CLASS), kind)
        entry += ENTRY


@slowpath
def may_nest(own: int, kind: int) -> int:
    """Tell whether one more lock of a class may be taken; the documented cases.

    With the mmap lock held for writing: the mmap lock of a fork's child, and its page-table locks
    or those of mremap's two ends.  With mm_all_locks: those of all files and anon_vmas.
    """
    if kind == LockClass.I_MMAP or kind == LockClass.ANON_VMA:
        return held_of_class(own, LockClass.MM_ALL_LOCKS, 1)
    if kind == LockClass.MMAP_LOCK or kind == LockClass.PAGE_TABLE_LOCK or kind == LockClass.PTL:
        second = held_of_class(own, kind, 0) == 1
        return second and held_of_class(own, LockClass.MMAP_LOCK, 1) != 0
    return 0


@slowpath
def note_order(orders: int, lock: int, held: int, wanted: int) -> None:
    """Add a pair, and see that no chain of pairs leads back.

    The update is of full order: of two CPUs that add the last two pairs of a cycle at once, one
    sees both.
    """
    atomic_fetch_or(orders + held * WORD, 1 << wanted)
    reached = 1 << wanted
    for _ in range(LOCK_CLASSES):
        before = reached
        for kind in range(1, LOCK_CLASSES):
            if (reached >> kind) & 1:
                reached = reached | read_once(orders + kind * WORD) | documented_inside(kind)
        if (reached >> held) & 1:
            lock_fault(LockFault.INVERSION, lock, held, wanted)
        if reached == before:
            return


@kernel
def documented_inside(kind: int) -> int:
    """Bits of the classes that docs/locking.md has inside of this one."""
    return (DOCUMENTED >> (kind + 1)) << (kind + 1) if kind < LAST_DOCUMENTED else 0


# Spinlocks


@around
def spin_lock(cpu: int, lock: int) -> None:
    """A lock that may have to be waited for."""
    kind = spinlock_class(cpu, lock)
    if kind == LockClass.WORKLOAD:
        proceed(cpu, lock)
        return
    lock_acquire(cpu, lock, kind)
    proceed(cpu, lock)
    lock_hold(cpu, lock, kind, 1)


@around
def spin_trylock(cpu: int, lock: int) -> int:
    """A lock that is not waited for; an override that does has noted it already."""
    taken: int = proceed(cpu, lock)
    kind = spinlock_class(cpu, lock)
    if taken and kind != LockClass.WORKLOAD and held_entry(load(cpu + CPU.stress), lock, 1) == 0:
        lock_hold(cpu, lock, kind, 1)
    return taken


@around
def spin_unlock(lock: int) -> None:
    """Only its holder may."""
    cpu = this_cpu()
    kind = spinlock_class(cpu, lock)
    if kind != LockClass.WORKLOAD:
        lock_release(cpu, lock, kind, 1)
    proceed(lock)


@around
def read_lock(cpu: int, lock: int) -> None:
    """The read-write lock of the VMA tree."""
    lock_acquire(cpu, lock, LockClass.MM_RB_LOCK)
    proceed(cpu, lock)
    lock_hold(cpu, lock, LockClass.MM_RB_LOCK, 0)


@around
def read_unlock(lock: int) -> None:
    """See `spin_unlock`."""
    lock_release(this_cpu(), lock, LockClass.MM_RB_LOCK, 0)
    proceed(lock)


@around
def write_lock(lock: int) -> None:
    """See `read_lock`."""
    lock_acquire(this_cpu(), lock, LockClass.MM_RB_LOCK)
    proceed(lock)
    lock_hold(this_cpu(), lock, LockClass.MM_RB_LOCK, 1)


@around
def write_unlock(lock: int) -> None:
    """See `spin_unlock`."""
    lock_release(this_cpu(), lock, LockClass.MM_RB_LOCK, 1)
    proceed(lock)


# Sleeping locks


@around
def down_read(cpu: int, sem: int) -> None:
    """A lock for which one may sleep."""
    kind = rwsem_class(cpu, sem)
    lock_acquire(cpu, sem, kind)
    proceed(cpu, sem)
    lock_hold(cpu, sem, kind, 0)


@around
def down_read_killable(cpu: int, sem: int) -> int:
    """The same; it is not held if a signal came."""
    kind = rwsem_class(cpu, sem)
    lock_acquire(cpu, sem, kind)
    error: int = proceed(cpu, sem)
    if error == 0:
        lock_hold(cpu, sem, kind, 0)
    return error


@around
def down_read_trylock(cpu: int, sem: int) -> int:
    """A lock that is not waited for."""
    taken: int = proceed(cpu, sem)
    if taken:
        lock_hold(cpu, sem, rwsem_class(cpu, sem), 0)
    return taken


@around
def up_read(cpu: int, sem: int) -> None:
    """Only who holds it for reading may."""
    lock_release(cpu, sem, rwsem_class(cpu, sem), 0)
    proceed(cpu, sem)


@around
def down_write(cpu: int, sem: int) -> None:
    """See `down_read`."""
    kind = rwsem_class(cpu, sem)
    lock_acquire(cpu, sem, kind)
    proceed(cpu, sem)
    lock_hold(cpu, sem, kind, 1)


@around
def down_write_killable(cpu: int, sem: int) -> int:
    """See `down_read_killable`."""
    kind = rwsem_class(cpu, sem)
    lock_acquire(cpu, sem, kind)
    error: int = proceed(cpu, sem)
    if error == 0:
        lock_hold(cpu, sem, kind, 1)
    return error


@around
def down_write_trylock(cpu: int, sem: int) -> int:
    """See `down_read_trylock`."""
    taken: int = proceed(cpu, sem)
    if taken:
        lock_hold(cpu, sem, rwsem_class(cpu, sem), 1)
    return taken


@around
def up_write(cpu: int, sem: int) -> None:
    """Only who holds it for writing may."""
    lock_release(cpu, sem, rwsem_class(cpu, sem), 1)
    proceed(cpu, sem)


@around
def downgrade_write(cpu: int, sem: int) -> None:
    """Who holds it for writing holds it for reading afterwards."""
    kind = rwsem_class(cpu, sem)
    lock_release(cpu, sem, kind, 1)
    proceed(cpu, sem)
    lock_hold(cpu, sem, kind, 0)


@around
def percpu_down_read_trylock(cpu: int, sem: int) -> int:
    """A lock that is not waited for; see also CPU.percpu_read."""
    taken: int = proceed(cpu, sem)
    if taken:
        lock_hold(cpu, sem, LockClass.MMU_NOTIFIER_LOCK, 0)
    return taken


@around
def percpu_up_read(cpu: int, sem: int) -> None:
    """Also called by a trylock that has failed; that it is held, the kernel's assertion sees."""
    lock_forget(cpu, sem, 0)
    proceed(cpu, sem)


@around
def percpu_down_write(cpu: int, sem: int) -> None:
    """See `down_write`."""
    lock_acquire(cpu, sem, LockClass.MMU_NOTIFIER_LOCK)
    proceed(cpu, sem)
    lock_hold(cpu, sem, LockClass.MMU_NOTIFIER_LOCK, 1)


@around
def percpu_up_write(cpu: int, sem: int) -> None:
    """See `up_write`."""
    lock_release(cpu, sem, LockClass.MMU_NOTIFIER_LOCK, 1)
    proceed(cpu, sem)


# Locks of single VMAs, where they are reference counts; as rw_semaphores they are noted above


@around
def vma_enter_locked(cpu: int, vma: int, target: int) -> int:
    """A writer that waits for the faults inside; it holds nothing but its mmap lock afterwards."""
    lock_acquire(cpu, vma + VMA.vm_lock, LockClass.VMA_LOCK)
    result: int = proceed(cpu, vma, target)
    return result


@around
def vma_start_read(cpu: int, mm: int, vma: int) -> int:
    """A fault that has locked its VMA; it does not wait for that."""
    error: int = proceed(cpu, mm, vma)
    if error == 0 and held_entry(load(cpu + CPU.stress), vma + VMA.vm_lock, 0) == 0:
        lock_hold(cpu, vma + VMA.vm_lock, LockClass.VMA_LOCK, 0)
    return error


@around
def vma_end_read(cpu: int, vma: int) -> None:
    """Only who has locked the VMA may; as an rw_semaphore it is released inside."""
    own = load(cpu + CPU.stress)
    if held_entry(own, vma + VMA.vm_lock, 0) == 0:
        lock_fault(LockFault.NOT_HELD, vma, LockClass.VMA_LOCK, LockClass.VMA_LOCK)
    proceed(cpu, vma)
    lock_forget(cpu, vma + VMA.vm_lock, 0)


# Page locks


@around
def trylock_page(page: int) -> int:
    """The one way to get the lock of a page that others know."""
    taken: int = proceed(page)
    if taken:
        lock_hold(this_cpu(), page, LockClass.PAGE_LOCK, 1)
    return taken


@around
def lock_page(cpu: int, page: int) -> None:
    """The lock may have to be waited for; it is taken inside."""
    lock_acquire(cpu, page, LockClass.PAGE_LOCK)
    proceed(cpu, page)


@around
def lock_page_or_retry(cpu: int, vmf: int, page: int) -> int:
    """See `lock_page`."""
    lock_acquire(cpu, page, LockClass.PAGE_LOCK)
    locked: int = proceed(cpu, vmf, page)
    return locked


@around
def unlock_page(page: int) -> None:
    """Only its holder may."""
    lock_release(this_cpu(), page, LockClass.PAGE_LOCK, 1)
    proceed(page)


@around
def add_to_page_cache(cpu: int, mapping: int, index: int) -> tuple[int, int]:
    """A new page of a file is locked from the beginning."""
    page, created = proceed(cpu, mapping, index)
    if created:
        lock_hold(cpu, page, LockClass.PAGE_LOCK, 1)
    return page, created


@around
def swap_cache_add(cpu: int, entry: int, page: int) -> int:
    """So is one that is about to be read from swap; reclaim has locked its own."""
    error: int = proceed(cpu, entry, page)
    if error == 0 and held_entry(load(cpu + CPU.stress), page, 1) == 0:
        lock_hold(cpu, page, LockClass.PAGE_LOCK, 1)
    return error


@around
def free_page(cpu: int, page: int) -> None:
    """Reclaim frees pages with their locks (remove_mapping): nobody else knows them any more."""
    lock_forget(cpu, page, 1)
    proceed(cpu, page)


# What is no lock


@around
def rcu_read_lock(cpu: int) -> None:
    """From here on grace periods wait for this CPU."""
    proceed(cpu)
    lock_hold(cpu, 0, LockClass.RCU, 0)


@around
def rcu_read_unlock(cpu: int) -> None:
    """The end of a section that has begun."""
    lock_release(cpu, 0, LockClass.RCU, 0)
    proceed(cpu)


@around
def synchronize_rcu(cpu: int) -> None:
    """Wait for the sections of all others."""
    lock_acquire(cpu, 0, LockClass.RCU)
    proceed(cpu)


@around
def rcu_barrier(cpu: int) -> None:
    """See `synchronize_rcu`."""
    lock_acquire(cpu, 0, LockClass.RCU)
    proceed(cpu)


@around
def local_irq_disable(cpu: int) -> None:
    """From here on senders of IPIs wait for this CPU."""
    proceed(cpu)
    lock_hold(cpu, cpu, LockClass.IRQS_OFF, 0)


@around
def local_irq_enable(cpu: int) -> None:
    """The end of a section that has begun."""
    lock_release(cpu, cpu, LockClass.IRQS_OFF, 0)
    proceed(cpu)


@around
def wait_for_ipi(cpu: int, target: int, ticket: int) -> None:
    """Wait for the section of another CPU."""
    lock_acquire(cpu, target, LockClass.IRQS_OFF)
    proceed(cpu, target, ticket)


@around
def cond_resched(cpu: int) -> None:
    """Between operations nothing is held."""
    own = load(cpu + CPU.stress)
    if load(own + STRESS_CPU.nr_held) != 0:
        entry = own + STRESS_CPU.held
        lock_fault(LockFault.NOT_RELEASED, load(entry), load(entry + CLASS), 0)
    proceed(cpu)
