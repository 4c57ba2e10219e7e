# SPDX-License-Identifier: MIT
"""What each CPU waits for, for the watchdog (spfemu/stress/watchdog.py).

It checks nothing.  A slow path that waits leaves a note in its STRESS_CPU: the class of the lock,
the lock (for an IPI: the CPU that has to take it), and a number of its own, by which the watchdog
tells one long wait from many short ones.  A wait may be inside of another one.
"""

from spfemu.kernel import around, kernel, proceed
from spfemu.layout import CPU, STRESS_CPU, VMA
from spfemu.primitives import (
    load,
    smp_store_release,
    smp_wmb,
    store,
    this_cpu,
    write_once,
)
from spfemu.stress.lock_class import LockClass, rwsem_class, spinlock_class


@kernel
def begin_wait(cpu: int, kind: int, on: int) -> tuple[int, int, int]:
    """Leave a note; returns the one that was there, for `end_wait`."""
    own = load(cpu + CPU.stress)
    outer = load(own + STRESS_CPU.wait_class)
    outer_on = load(own + STRESS_CPU.wait_on)
    outer_number = load(own + STRESS_CPU.wait_number)
    number = load(own + STRESS_CPU.nr_waits) + 1
    store(own + STRESS_CPU.nr_waits, number)
    set_wait(own, kind, on, number)
    return outer, outer_on, outer_number


@kernel
def set_wait(own: int, kind: int, on: int, number: int) -> None:
    """Write a note; while that is half done its number is 0.

    The write barrier and the release pair with the acquires in `wait_graph`.
    """
    write_once(own + STRESS_CPU.wait_number, 0)
    smp_wmb()
    write_once(own + STRESS_CPU.wait_class, kind)
    write_once(own + STRESS_CPU.wait_on, on)
    smp_store_release(own + STRESS_CPU.wait_number, number)


@around
def spin_lock_slowpath(cpu: int, lock: int) -> None:
    """Until the holder lets go."""
    outer, on, number = begin_wait(cpu, spinlock_class(cpu, lock), lock)
    proceed(cpu, lock)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def read_lock_slowpath(cpu: int, lock: int) -> None:
    """Until the writer lets go."""
    outer, on, number = begin_wait(cpu, LockClass.MM_RB_LOCK, lock)
    proceed(cpu, lock)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def write_lock(lock: int) -> None:
    """Until all readers have let go."""
    outer, on, number = begin_wait(this_cpu(), LockClass.MM_RB_LOCK, lock)
    proceed(lock)
    set_wait(load(this_cpu() + CPU.stress), outer, on, number)


@around
def rwsem_down_read_slowpath(cpu: int, sem: int, count: int, killable: int) -> int:
    """Until the writer, and those queued before, have let go."""
    outer, on, number = begin_wait(cpu, rwsem_class(cpu, sem), sem)
    error: int = proceed(cpu, sem, count, killable)
    set_wait(load(cpu + CPU.stress), outer, on, number)
    return error


@around
def rwsem_down_write_slowpath(cpu: int, sem: int, killable: int) -> int:
    """Until everybody has let go; spinning in line for it is part of that."""
    outer, on, number = begin_wait(cpu, rwsem_class(cpu, sem), sem)
    error: int = proceed(cpu, sem, killable)
    set_wait(load(cpu + CPU.stress), outer, on, number)
    return error


@around
def percpu_down_write(cpu: int, sem: int) -> None:
    """Until the readers inside have left."""
    outer, on, number = begin_wait(cpu, LockClass.MMU_NOTIFIER_LOCK, sem)
    proceed(cpu, sem)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def vma_enter_locked(cpu: int, vma: int, target: int) -> int:
    """Until the faults inside have left."""
    outer, on, number = begin_wait(cpu, LockClass.VMA_LOCK, vma + VMA.vm_lock)
    locked: int = proceed(cpu, vma, target)
    set_wait(load(cpu + CPU.stress), outer, on, number)
    return locked


@around
def wait_on_page_locked(cpu: int, page: int) -> None:
    """Until the page is unlocked."""
    outer, on, number = begin_wait(cpu, LockClass.PAGE_LOCK, page)
    proceed(cpu, page)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def synchronize_rcu(cpu: int) -> None:
    """Until each CPU has been quiescent."""
    outer, on, number = begin_wait(cpu, LockClass.RCU, 0)
    proceed(cpu)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def rcu_barrier(cpu: int) -> None:
    """See `synchronize_rcu`."""
    outer, on, number = begin_wait(cpu, LockClass.RCU, 0)
    proceed(cpu)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def wait_for_ipi(cpu: int, target: int, ticket: int) -> None:
    """Until the target takes its interrupt."""
    outer, on, number = begin_wait(cpu, LockClass.IRQS_OFF, target)
    proceed(cpu, target, ticket)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def userfaultfd_sleep(cpu: int, ctx: int) -> None:
    """Until the monitor has filled the page."""
    outer, on, number = begin_wait(cpu, LockClass.MONITOR, ctx)
    proceed(cpu, ctx)
    set_wait(load(cpu + CPU.stress), outer, on, number)


@around
def cpu_sleep(cpu: int, word: int, expected: int, timeout_ns: int) -> int:
    """Note what a CPU sleeps on that only somebody else can wake."""
    own = load(cpu + CPU.stress)
    if timeout_ns < 0:
        store(own + STRESS_CPU.sleep_value, expected)
        store(own + STRESS_CPU.sleep_on, word)
    result: int = proceed(cpu, word, expected, timeout_ns)
    store(own + STRESS_CPU.sleep_on, 0)
    return result
