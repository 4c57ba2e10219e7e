# SPDX-License-Identifier: MIT
"""Calls of threads of a process with a userfaultfd: its monitor, and who runs into it."""

from spfemu.kernel import kernel
from spfemu.layout import CPU, USERFAULTFD_CTX
from spfemu.mm.flags import Foll
from spfemu.mm.gup import get_user_pages_fast
from spfemu.mm.mcopy import userfaultfd_copy, userfaultfd_writeprotect, userfaultfd_zeropage
from spfemu.mm.mlock import sys_mlock, sys_mlockall
from spfemu.mm.mmu import user_write
from spfemu.mm.mmu_notifier import mmu_notifier_register, mmu_notifier_unregister
from spfemu.mm.rwsem_waiters import send_fatal_signal
from spfemu.mm.sched import cpu_idle_enter, cpu_idle_exit, cpu_sleep
from spfemu.mm.secondary_mmu import notifier_read
from spfemu.mm.userfaultfd import (
    MSG_WP,
    sys_userfaultfd,
    userfaultfd_read,
    userfaultfd_take,
    userfaultfd_wake,
)
from spfemu.mm.userfaultfd_register import (
    userfaultfd_register,
    userfaultfd_release,
    userfaultfd_unregister,
)
from spfemu.primitives import atomic_fetch_add, futex_wake, load, read_once, smp_load_acquire


@kernel
def thread_open(cpu: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_userfaultfd(cpu)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_register(cpu: int, ctx: int, start: int, length: int, mode: int) -> int:
    cpu_idle_exit(cpu)
    result = userfaultfd_register(cpu, ctx, start, length, mode)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_unregister(cpu: int, ctx: int, start: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = userfaultfd_unregister(cpu, ctx, start, length)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_release(cpu: int, ctx: int) -> int:
    cpu_idle_exit(cpu)
    userfaultfd_release(cpu, ctx)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_message(cpu: int, ctx: int, timeout_ns: int) -> tuple[int, int, int]:
    """Read a message."""
    cpu_idle_exit(cpu)
    error, address, flags = userfaultfd_read(cpu, ctx, timeout_ns)
    cpu_idle_enter(cpu)
    return error, address, flags


@kernel
def thread_copy(cpu: int, ctx: int, dst: int, src: int, length: int, mode: int) -> int:
    cpu_idle_exit(cpu)
    result = userfaultfd_copy(cpu, ctx, dst, src, length, mode)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_zeropage(cpu: int, ctx: int, start: int, length: int, mode: int) -> int:
    cpu_idle_exit(cpu)
    result = userfaultfd_zeropage(cpu, ctx, start, length, mode)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_writeprotect(cpu: int, ctx: int, start: int, length: int, mode: int) -> int:
    cpu_idle_exit(cpu)
    result = userfaultfd_writeprotect(cpu, ctx, start, length, mode)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_wake(cpu: int, ctx: int, start: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = userfaultfd_wake(cpu, ctx, start, length)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_write_counted(cpu: int, ctx: int, word: int, address: int, value: int) -> int:
    """Write, then count at `word` that this is done, and tell the monitor."""
    cpu_idle_exit(cpu)
    result = user_write(cpu, address, value)
    atomic_fetch_add(word, 1)
    atomic_fetch_add(ctx + USERFAULTFD_CTX.event, 1)
    futex_wake(ctx + USERFAULTFD_CTX.event, 1)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_serve(cpu: int, ctx: int, src: int, word: int, writers: int) -> int:
    """Serve until so many writers are done: copy missing pages from `src`, end protection."""
    cpu_idle_exit(cpu)
    while True:
        event = smp_load_acquire(ctx + USERFAULTFD_CTX.event)
        if read_once(word) == writers:
            break
        found, address, flags = userfaultfd_take(cpu, ctx)
        if found == 0:
            cpu_sleep(cpu, ctx + USERFAULTFD_CTX.event, event, -1)
        elif flags & MSG_WP:
            userfaultfd_writeprotect(cpu, ctx, address, 4096, 0)
        elif userfaultfd_copy(cpu, ctx, address, src, 4096, 0) < 0:
            # somebody filled it first, or nobody is served any more
            userfaultfd_wake(cpu, ctx, address, 4096)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_mlock(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mlock(cpu, address, length)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_mlockall(cpu: int, flags: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mlockall(cpu, flags)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_get_writable(cpu: int, address: int, nr_pages: int) -> int:
    """Take references to frames that are going to be written to."""
    cpu_idle_exit(cpu)
    result = get_user_pages_fast(cpu, address, nr_pages, Foll.WRITE, cpu + CPU.gup_pages)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_read_by_device(cpu: int, address: int) -> tuple[int, int]:
    """Read a word as a subscriber to changes of mappings."""
    cpu_idle_exit(cpu)
    subscription = mmu_notifier_register(cpu, load(cpu + CPU.mm))
    error, value = notifier_read(cpu, subscription, address)
    mmu_notifier_unregister(cpu, subscription)
    cpu_idle_enter(cpu)
    return error, value


@kernel
def thread_kill(cpu: int, target: int) -> int:
    """Send a fatal signal to another CPU."""
    cpu_idle_exit(cpu)
    send_fatal_signal(target)
    cpu_idle_enter(cpu)
    return 0
