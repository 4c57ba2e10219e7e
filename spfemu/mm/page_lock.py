# SPDX-License-Identifier: MIT
"""The lock of a page: PG_locked in its flags, for which a CPU may sleep (Linux 6.1, mm/filemap.c).

Who has it may fill the page, and take it into and out of a cache.  The kernel keeps queues of
waiters by a hash of the page; here they sleep on the flags themselves, and all are woken.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import PAGE, VMF
from spfemu.mm.flags import FaultFlag, Pg
from spfemu.mm.mmap_lock import release_fault_lock
from spfemu.mm.sched import cpu_sleep
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_and,
    atomic_fetch_or,
    cmpxchg,
    futex_wake,
    load,
    read_once,
)

EVERYBODY = (1 << 31) - 1
RETRY_FIRST = int(FaultFlag.ALLOW_RETRY | FaultFlag.TRIED)
WAITED_FOR = int(Pg.LOCKED | Pg.WAITERS)


@kernel
def page_locked(page: int) -> int:
    """Tell whether somebody has the page locked."""
    return (read_once(page + PAGE.flags) & Pg.LOCKED) != 0


@kernel
def trylock_page(page: int) -> int:
    """Lock the page if it is not; returns 1 if so.  The caller has a reference to it.

    The update pairs with that in `unlock_page`.  Both are of full order: whoever fails here has
    shown what it did before to the holder that unlocks next.
    """
    return (atomic_fetch_or(page + PAGE.flags, Pg.LOCKED) & Pg.LOCKED) == 0


@kernel
def lock_page(cpu: int, page: int) -> None:
    """Lock the page, asleep as long as somebody else has it."""
    if trylock_page(page) == 0:
        lock_page_slowpath(cpu, page)


@slowpath
def lock_page_slowpath(cpu: int, page: int) -> None:
    """Wait for the page and lock it (__folio_lock)."""
    while True:
        wait_on_page_locked(cpu, page)
        if trylock_page(page):
            return


@slowpath
def wait_on_page_locked(cpu: int, page: int) -> None:
    """Sleep until the page is unlocked; the caller has a reference to it."""
    while True:
        flags = read_once(page + PAGE.flags)
        if (flags & Pg.LOCKED) == 0:
            return
        if cmpxchg(page + PAGE.flags, flags, flags | Pg.WAITERS) == flags:
            cpu_sleep(cpu, page + PAGE.flags, flags | Pg.WAITERS, -1)


@kernel
def unlock_page(page: int) -> None:
    """Unlock the page and wake those who wait for it; of full order, see `trylock_page`."""
    if atomic_fetch_and(page + PAGE.flags, ~WAITED_FOR) & Pg.WAITERS:
        futex_wake(page + PAGE.flags, EVERYBODY)


@kernel
def lock_page_or_retry(cpu: int, vmf: int, page: int) -> int:
    """Lock the page for a fault; 0 if the fault has to start afresh (VM_FAULT_RETRY).

    A fault lets go of the lock under which it found its VMA for the wait, but only once.
    """
    if trylock_page(page):
        return 1
    return lock_page_or_retry_slowpath(cpu, vmf, page)


@slowpath
def lock_page_or_retry_slowpath(cpu: int, vmf: int, page: int) -> int:
    """Wait for the page (__lock_page_or_retry)."""
    if load(vmf + VMF.flags) & RETRY_FIRST == FaultFlag.ALLOW_RETRY:
        count_vm_event(cpu, Event.PAGE_LOCK_RETRY)
        release_fault_lock(cpu, vmf)
        wait_on_page_locked(cpu, page)
        return 0
    lock_page_slowpath(cpu, page)
    return 1
