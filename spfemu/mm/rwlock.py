# SPDX-License-Identifier: MIT
"""Spinning read-write locks: a word that counts readers, with a bit for the writer.

For the kernel's ``rwlock_t`` (Linux 4.16, kernel/locking/qrwlock.c).  As there, a writer that waits
keeps new readers out.  Differs in that there is one writer at a time: callers see to that.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.mm.irq import cpu_relax_poll
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add_acquire,
    atomic_fetch_add_relaxed,
    atomic_fetch_add_release,
    atomic_fetch_and,
    atomic_fetch_or,
    cpu_relax,
    read_once,
    smp_load_acquire,
)

RWLOCK_WRITER = 1
RWLOCK_READER = 2


@kernel
def read_lock(cpu: int, lock: int) -> None:
    """Take `lock` for reading, spinning; the acquire pairs with the update in `write_unlock`."""
    if atomic_fetch_add_acquire(lock, RWLOCK_READER) & RWLOCK_WRITER:
        read_lock_slowpath(cpu, lock)


@slowpath
def read_lock_slowpath(cpu: int, lock: int) -> None:
    """Let the writer pass, then try again."""
    count_vm_event(cpu, Event.SPIN_CONTENDED)
    while True:
        atomic_fetch_add_relaxed(lock, -RWLOCK_READER)
        while read_once(lock) & RWLOCK_WRITER:
            cpu_relax_poll(cpu)
        if (atomic_fetch_add_acquire(lock, RWLOCK_READER) & RWLOCK_WRITER) == 0:
            return


@kernel
def read_unlock(lock: int) -> None:
    """Release `lock`; pairs with the acquire in `write_lock`."""
    atomic_fetch_add_release(lock, -RWLOCK_READER)


@kernel
def write_lock(lock: int) -> None:
    """Take `lock` for writing: keep new readers out, wait until those inside have left.

    Serves no IPI meanwhile: readers wait for nothing while they hold it.
    """
    atomic_fetch_or(lock, RWLOCK_WRITER)
    while smp_load_acquire(lock) != RWLOCK_WRITER:
        cpu_relax()


@kernel
def write_unlock(lock: int) -> None:
    """Release `lock`; the full order pairs with the acquire in `read_lock`."""
    atomic_fetch_and(lock, ~RWLOCK_WRITER)
