# SPDX-License-Identifier: MIT
"""The per-CPU reader-writer semaphore: readers write nothing that other CPUs read.

A reader says in its own CPU block which semaphore it holds.  A writer announces itself
(rcu_sync_enter) and waits for a grace period, so that every later reader has seen that; then it
blocks new readers and waits for those inside (percpu_down_write).  Answers to
kernel/locking/percpu-rwsem.c and kernel/rcu/sync.c (Linux 5.12).  Differs in that a CPU holds at
most one for reading (so a word with its address replaces the counter), that waiting is by polling,
that a writer calls rcu_sync_enter itself, so that it need not hold other locks meanwhile, and in
that readers go the fast way again as soon as the last writer has left: their acquire of `rss`
takes the place of the grace period that the kernel lets pass before that.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PERCPU_RWSEM, SYSTEM
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.irq import cpu_relax_poll
from spfemu.mm.rcu import rcu_quiescent, rcu_read_lock, rcu_read_unlock, synchronize_rcu
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_release,
    load,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    write_once,
    xchg,
)


@kernel
def percpu_down_read_trylock(cpu: int, sem: int) -> int:
    """Lock for reading if no writer has the lock or waits for it; returns 1 if locked.

    Without writers this is a load and a store to the CPU's own block: a writer that announces
    itself later waits for the section to end before it looks at this block.  The acquire pairs with
    the release in rcu_sync_exit: who sees no writer sees what the last one did.
    """
    vm_bug_on(load(cpu + CPU.percpu_read) != 0, Bug.PERCPU_READ_NESTED)
    rcu_read_lock(cpu)
    if smp_load_acquire(sem + PERCPU_RWSEM.rss) == 0:
        write_once(cpu + CPU.percpu_read, sem)
        rcu_read_unlock(cpu)
        return 1
    rcu_read_unlock(cpu)
    return __percpu_down_read_trylock(cpu, sem)


@slowpath
def __percpu_down_read_trylock(cpu: int, sem: int) -> int:
    """Lock for reading while a writer is about; returns 1 if locked.

    The fence pairs with that in percpu_down_write: either the writer sees this reader, or it is
    seen here.  The acquire of `block` pairs with the release in percpu_up_write.
    """
    write_once(cpu + CPU.percpu_read, sem)
    smp_mb()
    if smp_load_acquire(sem + PERCPU_RWSEM.block) == 0:
        return 1
    percpu_up_read(cpu, sem)
    return 0


@kernel
def percpu_up_read(cpu: int, sem: int) -> None:
    """Release a lock held for reading; pairs with the acquire in percpu_wait_for_readers."""
    vm_bug_on(load(cpu + CPU.percpu_read) != sem, Bug.PERCPU_READ_NESTED)
    smp_store_release(cpu + CPU.percpu_read, 0)


@slowpath
def rcu_sync_enter(cpu: int, sem: int) -> None:
    """Announce a writer: when this returns, every reader looks at `block`, or can be seen inside.

    Not from an RCU read-side section, nor with a spinlock held.
    """
    atomic_fetch_add(sem + PERCPU_RWSEM.rss, 1)
    synchronize_rcu(cpu)


@kernel
def rcu_sync_exit(sem: int) -> None:
    """Take the announcement back; pairs with the acquire in percpu_down_read_trylock."""
    atomic_fetch_add_release(sem + PERCPU_RWSEM.rss, -1)


@slowpath
def percpu_down_write(cpu: int, sem: int) -> None:
    """Lock for writing, after rcu_sync_enter: waits for readers and other writers."""
    vm_bug_on(load(sem + PERCPU_RWSEM.rss) == 0, Bug.PERCPU_NOT_ANNOUNCED)
    while xchg(sem + PERCPU_RWSEM.block, 1) != 0:
        rcu_quiescent(cpu)
        cpu_relax_poll(cpu)
    # pairs with the fence in __percpu_down_read_trylock
    smp_mb()
    percpu_wait_for_readers(cpu, sem)


@slowpath
def percpu_wait_for_readers(cpu: int, sem: int) -> None:
    """Wait until no CPU holds the lock for reading (readers_active_check).

    The acquire pairs with the release in percpu_up_read: what readers did is seen.
    """
    system = load(cpu + CPU.system)
    target = load(system + SYSTEM.cpus)
    for _ in range(load(system + SYSTEM.nr_cpus)):
        while smp_load_acquire(target + CPU.percpu_read) == sem:
            rcu_quiescent(cpu)
            cpu_relax_poll(cpu)
        target += CPU.SIZE


@kernel
def percpu_up_write(cpu: int, sem: int) -> None:
    """Release a lock held for writing; pairs with the acquire in __percpu_down_read_trylock."""
    smp_store_release(sem + PERCPU_RWSEM.block, 0)
