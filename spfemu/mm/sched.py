# SPDX-License-Identifier: MIT
"""Where a CPU passes between running and sleeping, and the points between operations.

An idle CPU needs no IPIs and is quiescent for RCU; in exchange it flushes its TLB before it goes
on if its mm was flushed meanwhile (Linux 5.12: lazy TLB mode, arch/x86/mm/tlb.c, and the dynticks
counter of kernel/rcu/tree.c).
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.irq import CpuState, irq_poll, local_flush_tlb, serve_ipi
from spfemu.mm.rcu import rcu_check_callbacks, rcu_quiescent
from spfemu.primitives import (
    cmpxchg_acquire,
    cpu_relax,
    futex_wait,
    load,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    store,
)


@kernel
def cond_resched(cpu: int) -> None:
    """Pass a point between operations: serve IPIs, report a quiescent state to RCU."""
    irq_poll(cpu)
    rcu_quiescent(cpu)
    rcu_check_callbacks(cpu)


@slowpath
def cpu_idle_enter(cpu: int) -> None:
    """Stop using the TLB and the kernel's lockless structures.

    The release orders everything before it for whoever reads the state and then frees.
    """
    vm_bug_on(load(cpu + CPU.rcu_nesting) != 0, Bug.SLEEP_IN_ATOMIC)
    vm_bug_on(load(cpu + CPU.irqs_disabled), Bug.SLEEP_IN_ATOMIC)
    smp_store_release(cpu + CPU.state, CpuState.IDLE)


@slowpath
def cpu_idle_exit(cpu: int) -> None:
    """Go on running: flush what was flushed elsewhere meanwhile, serve what was asked for.

    The fence pairs with those of the flush (tlb.py) and the grace period (rcu.py): either they
    see this CPU running, or it sees their tlb_gen and unlinked objects.  The acquire pairs with the
    release of a drainer (drain.py), who is waited for.
    """
    state = cpu + CPU.state
    while True:
        found = read_once(state)
        if found != CpuState.FROZEN and cmpxchg_acquire(state, found, CpuState.RUNNING) == found:
            break
        cpu_relax()
    smp_mb()
    mm = load(cpu + CPU.mm)
    gen = smp_load_acquire(mm + MM.tlb_gen)
    if gen != load(cpu + CPU.tlb_gen):
        store(cpu + CPU.tlb_gen, gen)
        local_flush_tlb(cpu)
    if read_once(cpu + CPU.ipi_request) != load(cpu + CPU.ipi_done):
        serve_ipi(cpu)


@slowpath
def cpu_sleep(cpu: int, word: int, expected: int, timeout_ns: int) -> int:
    """Sleep on a futex word as an idle CPU; results as of `futex_wait`."""
    cpu_idle_enter(cpu)
    result = futex_wait(word, expected, timeout_ns)
    cpu_idle_exit(cpu)
    return result
