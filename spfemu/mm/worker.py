# SPDX-License-Identifier: MIT
"""What a worker process runs: one CPU that repeats the workload's operation until told to stop."""

from typing import TYPE_CHECKING

from spfemu.kernel import kernel
from spfemu.layout import CPU, CPUMASK_SHIFT, MM, SYSTEM, WORD
from spfemu.mm.config import CONFIG_LATENCY, CONFIG_NUMA
from spfemu.mm.kthread import Role, kthread_op
from spfemu.mm.latency import WRITER_LATENCY, record_latency
from spfemu.mm.numa import task_tick_numa
from spfemu.mm.rcu import rcu_barrier
from spfemu.mm.rss import sync_mm_rss
from spfemu.mm.sched import cond_resched, cpu_idle_enter, cpu_idle_exit
from spfemu.primitives import atomic_fetch_or, load, read_cycles, read_once, smp_mb, store

if TYPE_CHECKING:  # defined by the workload
    from spfemu.workloads.common import wait_for_turn
    from spfemu.workloads.defaults import (
        workload_leave,
        workload_op,
        workload_setup,
        writer_op,
        writer_setup,
    )
    from spfemu.workloads.uffd_missing import writer_leave


@kernel
def cpu_online(cpu: int) -> None:
    """Start running the mm: from here on flushes and grace periods wait for this CPU."""
    index = load(cpu + CPU.id)
    mm = load(cpu + CPU.mm)
    # the fence in cpu_idle_exit orders this before the first use of the mm
    atomic_fetch_or(mm + MM.cpumask + (index >> CPUMASK_SHIFT) * WORD, 1 << (index & 31))
    smp_mb()
    cpu_idle_exit(cpu)


@kernel
def cpu_offline(cpu: int) -> None:
    """Stop running: settle the CPU's accounts and let nobody wait for it any more."""
    sync_mm_rss(cpu)
    cpu_idle_enter(cpu)


@kernel
def worker_setup(cpu: int) -> int:
    """Bring the CPU up and run the workload's preparation; returns 0 or a negative errno."""
    cpu_online(cpu)
    role = load(cpu + CPU.role)
    result = 0
    if role == Role.WORKER:
        result = workload_setup(cpu)
    elif role == Role.WRITER:
        result = writer_setup(cpu)
    # whoever waits at the gate is not running: flushes and grace periods go on without it
    cpu_idle_enter(cpu)
    return result


@kernel
def worker_loop(cpu: int) -> int:
    """Repeat the operation until SYSTEM.stop is set; returns 0 or what the workload failed with."""
    stop = load(cpu + CPU.system) + SYSTEM.stop
    cpu_idle_exit(cpu)
    result = 0
    while result >= 0 and read_once(stop) == 0:
        result = worker_operation(cpu)
        store(cpu + CPU.operations, load(cpu + CPU.operations) + 1)
        cond_resched(cpu)
        if CONFIG_NUMA and load(cpu + CPU.role) <= Role.WRITER:
            task_tick_numa(cpu)
    if result < 0:
        store(cpu + CPU.failed, -result)
    role = load(cpu + CPU.role)
    if role == Role.WORKER:
        workload_leave(cpu)
    elif role == Role.WRITER:
        writer_leave(cpu)
    cpu_offline(cpu)
    return result


@kernel
def worker_operation(cpu: int) -> int:
    """Run one operation of the worker's part; writers' are timed when latencies are built in.

    A writer first waits for its turn, which is not part of the operation.
    """
    role = load(cpu + CPU.role)
    if role == Role.WORKER:
        return workload_op(cpu)
    if role != Role.WRITER:
        return kthread_op(cpu)
    if wait_for_turn(cpu) == 0:
        return 0
    started = 0
    if CONFIG_LATENCY:
        started = read_cycles()
    result = writer_op(cpu)
    if CONFIG_LATENCY:
        record_latency(cpu, WRITER_LATENCY, read_cycles() - started)
    return result


@kernel
def worker_exit(cpu: int) -> None:
    """Run what is still queued for RCU, once all workers have left their loops."""
    cpu_idle_exit(cpu)
    rcu_barrier(cpu)
    cpu_idle_enter(cpu)
