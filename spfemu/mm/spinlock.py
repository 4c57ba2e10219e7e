# SPDX-License-Identifier: MIT
"""Spinlocks: a word that is 0 when free, else the holder's CPU number plus one.

Test and test-and-set, for the kernel's ``spinlock_t`` (Linux 5.12, kernel/locking/spinlock.c).
Differs from the queued spinlock there in that waiters are not served in order; the number of the
holder lets a crash report name who died with the lock.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU
from spfemu.mm.irq import cpu_relax_poll
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import cmpxchg_acquire, load, read_once, smp_store_release


@kernel
def spin_trylock(cpu: int, lock: int) -> int:
    """Take `lock` if it is free; returns 1 if taken.

    The acquire pairs with the release in `spin_unlock`.
    """
    return cmpxchg_acquire(lock, 0, load(cpu + CPU.id) + 1) == 0


@kernel
def spin_lock(cpu: int, lock: int) -> None:
    """Take `lock`, spinning; interrupts stay as they are and are served only if enabled."""
    if cmpxchg_acquire(lock, 0, load(cpu + CPU.id) + 1) != 0:
        spin_lock_slowpath(cpu, lock)


@slowpath
def spin_lock_slowpath(cpu: int, lock: int) -> None:
    """Wait by reading, so that the line stays shared until the holder lets go."""
    count_vm_event(cpu, Event.SPIN_CONTENDED)
    me = load(cpu + CPU.id) + 1
    while True:
        while read_once(lock) != 0:
            cpu_relax_poll(cpu)
        if cmpxchg_acquire(lock, 0, me) == 0:
            return


@kernel
def spin_unlock(lock: int) -> None:
    """Release `lock`; pairs with the acquire of the next taker."""
    smp_store_release(lock, 0)
