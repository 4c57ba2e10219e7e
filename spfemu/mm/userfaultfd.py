# SPDX-License-Identifier: MIT
"""userfaultfd: a thread of the program serves the faults of others (Linux 5.12, fs/userfaultfd.c).

A fault in a registered VMA queues a message with its context, lets go of its lock and sleeps.  The
monitor reads the message, fills or unprotects the page (mcopy.py) and wakes who waits for it; the
fault starts afresh.  A context stands for an open file descriptor, and its address for the number.

VMAs hold no reference to their context: `userfaultfd_release` (userfaultfd_register.py) clears them
under the mmap lock before the context goes.  What differs: there is one list of faults instead of
two wait queues, `wake_userfault` always takes its lock, and no events but faults are told.
"""

from enum import IntEnum

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import (
    CPU,
    MM,
    RWSEM_WAITER,
    SYSTEM,
    UFFD_WAIT,
    USERFAULTFD_CTX,
    VMA,
    VMF,
)
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import Errno, FaultFlag, Pte, Vm, VmFault
from spfemu.mm.mm_struct import mmdrop, mmgrab
from spfemu.mm.mmap_lock import release_fault_lock
from spfemu.mm.pgtable import lookup_pte
from spfemu.mm.rwsem_waiters import TaskWord, rwsem_arm_waiter
from spfemu.mm.sched import cond_resched, cpu_sleep
from spfemu.mm.slab import slab_give, slab_take
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add,
    futex_wake,
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
)


class UffdState(IntEnum):
    """UFFD_WAIT.state."""

    NOT_QUEUED = 0
    PENDING = 1
    READ = 2


MSG_WRITE = 1
"""Bit of a message: the access is a write (UFFD_PAGEFAULT_FLAG_WRITE)."""
MSG_WP = 2
"""Bit of a message: the page is write-protected (UFFD_PAGEFAULT_FLAG_WP)."""

# Contexts


@slowpath
def sys_userfaultfd(cpu: int) -> int:
    """Open a context for this CPU's mm; returns its address or -EMFILE if there is none left."""
    ctx = slab_take(cpu, SYSTEM.uffd_lock, SYSTEM.uffd_free, USERFAULTFD_CTX.next_free)
    if ctx == 0:
        return -Errno.EMFILE
    mm = load(cpu + CPU.mm)
    mmgrab(mm)
    store(ctx + USERFAULTFD_CTX.next_free, 0)
    store(ctx + USERFAULTFD_CTX.mm, mm)
    store(ctx + USERFAULTFD_CTX.released, 0)
    store(ctx + USERFAULTFD_CTX.refcount, 1)
    return ctx


@kernel
def userfaultfd_ctx_get(ctx: int) -> None:
    """Take another reference to an open context."""
    atomic_fetch_add(ctx + USERFAULTFD_CTX.refcount, 1)


@kernel
def userfaultfd_ctx_put(cpu: int, ctx: int) -> None:
    """Drop a reference; the last one frees the context."""
    count = atomic_fetch_add(ctx + USERFAULTFD_CTX.refcount, -1)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    if count == 1:
        userfaultfd_ctx_free(cpu, ctx)


@slowpath
def userfaultfd_ctx_free(cpu: int, ctx: int) -> None:
    """Give back a context that nobody refers to."""
    mmdrop(cpu, load(ctx + USERFAULTFD_CTX.mm))
    store(ctx + USERFAULTFD_CTX.mm, 0)
    slab_give(cpu, SYSTEM.uffd_lock, SYSTEM.uffd_free, USERFAULTFD_CTX.next_free, ctx)


# Faults


@slowpath
def handle_userfault(cpu: int, vmf: int, reason: int) -> int:
    """Tell the monitor of a fault and wait for it; returns VM_FAULT_* bits.

    RETRY: the lock of the fault is released.  SIGBUS if the caller cannot let go of it.  `reason`
    is Vm.UFFD_MISSING or Vm.UFFD_WP; the page-table lock is not held.
    """
    if (load(vmf + VMF.flags) & FaultFlag.ALLOW_RETRY) == 0:
        return VmFault.SIGBUS
    vma = load(vmf + VMF.vma)
    mm = load(vma + VMA.vm_mm)
    ctx = load(vma + VMA.vm_userfaultfd_ctx)
    if read_once(ctx + USERFAULTFD_CTX.released) != 0:
        # Whoever closes it waits for the lock of this fault; then the access is an ordinary one.
        # Until then get_user_pages, which keeps the lock if a fault does, must not (6.15, "fix
        # release hang over concurrent GUP").
        release_fault_lock(cpu, vmf)
        cond_resched(cpu)
        return VmFault.RETRY
    userfaultfd_ctx_get(ctx)
    userfaultfd_queue(cpu, ctx, vmf, reason)
    must_wait = userfaultfd_must_wait(mm, load(vmf + VMF.address), reason)
    release_fault_lock(cpu, vmf)
    if must_wait and read_once(ctx + USERFAULTFD_CTX.released) == 0:
        count_vm_event(cpu, Event.UFFD_WAIT)
        userfaultfd_sleep(cpu, ctx)
    userfaultfd_unqueue(cpu, ctx)
    userfaultfd_ctx_put(cpu, ctx)
    return VmFault.RETRY


@kernel
def userfaultfd_queue(cpu: int, ctx: int, vmf: int, reason: int) -> None:
    """Put the message of a fault last in the list of its context.

    The lock orders it with `wake_userfault`: a waker that comes before has filled the page, which
    `userfaultfd_must_wait` sees, or has set `released`; one that comes after finds the message.
    """
    wait = cpu + CPU.uffd_wait
    flags = MSG_WRITE if load(vmf + VMF.flags) & FaultFlag.WRITE else 0
    if reason & Vm.UFFD_WP:
        flags = flags | MSG_WP
    store(wait + UFFD_WAIT.cpu, cpu)
    store(wait + UFFD_WAIT.address, load(vmf + VMF.address))
    store(wait + UFFD_WAIT.flags, flags)
    rwsem_arm_waiter(cpu + CPU.waiter)
    spin_lock(cpu, ctx + USERFAULTFD_CTX.lock)
    tail = load(ctx + USERFAULTFD_CTX.tail)
    store(wait + UFFD_WAIT.state, UffdState.PENDING)
    store(wait + UFFD_WAIT.next, 0)
    store(wait + UFFD_WAIT.prev, tail)
    if tail != 0:
        store(tail + UFFD_WAIT.next, wait)
    else:
        store(ctx + USERFAULTFD_CTX.head, wait)
    store(ctx + USERFAULTFD_CTX.tail, wait)
    spin_unlock(ctx + USERFAULTFD_CTX.lock)


@kernel
def userfaultfd_must_wait(mm: int, address: int, reason: int) -> int:
    """Tell whether the page is still missing or read-only; the lock of the fault is held."""
    entry = lookup_pte(mm, address)
    if reason & Vm.UFFD_WP:
        return (entry & Pte.RW) == 0
    return entry == 0


@kernel
def userfaultfd_sleep(cpu: int, ctx: int) -> None:
    """Tell the monitor, then sleep until woken for this fault or by a fatal signal.

    The monitor reads `event` before it looks at the list: it finds the message or does not sleep.
    """
    task = cpu + CPU.waiter + RWSEM_WAITER.task
    atomic_fetch_add(ctx + USERFAULTFD_CTX.event, 1)
    futex_wake(ctx + USERFAULTFD_CTX.event, 1)
    while True:
        # Acquire pairs with the release in wake_userfault and with send_fatal_signal, whose bit
        # comes with the flag.
        word = smp_load_acquire(task)
        if (word & TaskWord.WAITING) == 0 or read_once(cpu + CPU.fatal_signal) != 0:
            return
        cpu_sleep(cpu, task, word, -1)


@kernel
def userfaultfd_unqueue(cpu: int, ctx: int) -> None:
    """Take this CPU's message out of the list unless its waker has: from here on none can come."""
    wait = cpu + CPU.uffd_wait
    spin_lock(cpu, ctx + USERFAULTFD_CTX.lock)
    if load(wait + UFFD_WAIT.state) != UffdState.NOT_QUEUED:
        userfaultfd_list_del(ctx, wait)
    spin_unlock(ctx + USERFAULTFD_CTX.lock)


@kernel
def userfaultfd_list_del(ctx: int, wait: int) -> None:
    """Take a message out of the list; its lock is held."""
    before = load(wait + UFFD_WAIT.prev)
    following = load(wait + UFFD_WAIT.next)
    if before != 0:
        store(before + UFFD_WAIT.next, following)
    else:
        store(ctx + USERFAULTFD_CTX.head, following)
    if following != 0:
        store(following + UFFD_WAIT.prev, before)
    else:
        store(ctx + USERFAULTFD_CTX.tail, before)
    store(wait + UFFD_WAIT.state, UffdState.NOT_QUEUED)


# The monitor


@slowpath
def userfaultfd_read(cpu: int, ctx: int, timeout_ns: int) -> tuple[int, int, int]:
    """Read the oldest message; (0, address, MSG_* bits), or (-EAGAIN, 0, 0) if none came in time.

    Sleeps at most once for `timeout_ns`, 0: not at all.  Source: userfaultfd_ctx_read.
    """
    # Acquire pairs with the update in userfaultfd_sleep.
    event = smp_load_acquire(ctx + USERFAULTFD_CTX.event)
    found, address, flags = userfaultfd_take(cpu, ctx)
    if found == 0 and timeout_ns != 0:
        cpu_sleep(cpu, ctx + USERFAULTFD_CTX.event, event, timeout_ns)
        found, address, flags = userfaultfd_take(cpu, ctx)
    return 0 if found else -Errno.EAGAIN, address, flags


@kernel
def userfaultfd_take(cpu: int, ctx: int) -> tuple[int, int, int]:
    """Mark the oldest unread message as read; (1, address, MSG_* bits), or (0, 0, 0)."""
    address = 0
    flags = 0
    spin_lock(cpu, ctx + USERFAULTFD_CTX.lock)
    wait = load(ctx + USERFAULTFD_CTX.head)
    while wait != 0 and load(wait + UFFD_WAIT.state) != UffdState.PENDING:
        wait = load(wait + UFFD_WAIT.next)
    if wait != 0:
        store(wait + UFFD_WAIT.state, UffdState.READ)
        address = load(wait + UFFD_WAIT.address)
        flags = load(wait + UFFD_WAIT.flags)
    spin_unlock(ctx + USERFAULTFD_CTX.lock)
    return wait != 0, address, flags


@slowpath
def wake_userfault(cpu: int, ctx: int, start: int, length: int) -> None:
    """Wake who waits for a page of [start, start + length), read or not; a length of 0: all.

    Whoever is awake may wait again at once, so its link is read before.  The release pairs with
    the acquire in userfaultfd_sleep.
    """
    spin_lock(cpu, ctx + USERFAULTFD_CTX.lock)
    wait = load(ctx + USERFAULTFD_CTX.head)
    while wait != 0:
        following = load(wait + UFFD_WAIT.next)
        address = load(wait + UFFD_WAIT.address)
        if length == 0 or start <= address < start + length:
            userfaultfd_list_del(ctx, wait)
            task = load(wait + UFFD_WAIT.cpu) + CPU.waiter + RWSEM_WAITER.task
            smp_store_release(task, 0)
            futex_wake(task, 1)
            count_vm_event(cpu, Event.UFFD_WAKE)
        wait = following
    spin_unlock(ctx + USERFAULTFD_CTX.lock)


@kernel
def userfaultfd_validate_range(mm: int, start: int, length: int) -> int:
    """Check the range of a request; 0 or -EINVAL (validate_range)."""
    task_size = load(mm + MM.task_size)
    if (start | length) & 4095 or length <= 0:
        return -Errno.EINVAL
    if start < load(mm + MM.mmap_min_addr) or start >= task_size:
        return -Errno.EINVAL
    return -Errno.EINVAL if length > task_size - start else 0


@slowpath
def userfaultfd_wake(cpu: int, ctx: int, start: int, length: int) -> int:
    """UFFDIO_WAKE: wake who waits for a page of the range; 0 or -EINVAL."""
    error = userfaultfd_validate_range(load(ctx + USERFAULTFD_CTX.mm), start, length)
    if error == 0:
        wake_userfault(cpu, ctx, start, length)
    return error
