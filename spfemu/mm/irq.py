# SPDX-License-Identifier: MIT
"""Interrupts of an emulated CPU and the one interrupt it gets: the function-call IPI.

A CPU serves IPIs whenever its interrupts are enabled: between operations, while it waits, and
when it enables them.  A sender waits until the target has served its request, so a CPU with
interrupts off holds off whoever needs its TLB flushed (Linux 5.12, kernel/smp.c and
arch/x86/mm/tlb.c: that is what keeps a lockless page-table walk safe there).
"""

from enum import IntEnum

from spfemu.events import Event
from spfemu.kernel import kernel, notrace, slowpath
from spfemu.layout import CPU, MM, TLB_ENTRIES
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add,
    cpu_relax,
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
)


class CpuState(IntEnum):
    """What CPU.state says; only a running CPU has to be sent IPIs."""

    OFFLINE = 0
    IDLE = 1
    RUNNING = 2
    FROZEN = 3
    """Idle, and another CPU works on what it has: it does not go on meanwhile (drain.py)."""


TLB_GENERATION = 1 << 36
"""Tags of the software TLB carry the virtual page number below this bit."""
TLB_TAG_LIMIT = 1 << 62
TLB_BYTES = 16 * TLB_ENTRIES


@kernel
def local_irq_disable(cpu: int) -> None:
    """Hold off IPIs; does not nest."""
    vm_bug_on(load(cpu + CPU.irqs_disabled), Bug.IRQS_ALREADY_OFF)
    store(cpu + CPU.irqs_disabled, 1)


@kernel
def local_irq_enable(cpu: int) -> None:
    """Serve IPIs again, those that wait at once."""
    store(cpu + CPU.irqs_disabled, 0)
    irq_poll(cpu)


@notrace
@kernel
def irq_poll(cpu: int) -> None:
    """Serve waiting IPIs if interrupts are enabled; the two words share a line of this CPU."""
    if read_once(cpu + CPU.ipi_request) != load(cpu + CPU.ipi_done):
        if load(cpu + CPU.irqs_disabled) == 0:
            serve_ipi(cpu)


@slowpath
def serve_ipi(cpu: int) -> None:
    """Do what was asked for: flush the TLB and say so.

    The acquire pairs with the sender's atomic add: its page-table changes are seen before the
    next walk.  The release pairs with the acquire in `wait_for_ipi`: the sender frees nothing
    before the stale entries are gone.  The mm's tlb_gen is read before the flush, which so covers
    it, and remembered: going on from idle later needs no other flush (flush_tlb_func_common).
    """
    request = smp_load_acquire(cpu + CPU.ipi_request)
    gen = smp_load_acquire(load(cpu + CPU.mm) + MM.tlb_gen)
    local_flush_tlb(cpu)
    store(cpu + CPU.tlb_gen, gen)
    count_vm_event(cpu, Event.TLB_SHOOTDOWN_RECEIVED)
    smp_store_release(cpu + CPU.ipi_done, request)


@kernel
def local_flush_tlb(cpu: int) -> None:
    """Invalidate all entries of this CPU's TLB by changing the generation in the tags."""
    count_vm_event(cpu, Event.TLB_FLUSH)
    tag = load(cpu + CPU.tlb_tag) + TLB_GENERATION
    if tag >= TLB_TAG_LIMIT:
        tag = TLB_GENERATION
        clear_tlb(cpu)
    store(cpu + CPU.tlb_tag, tag)


@slowpath
def clear_tlb(cpu: int) -> None:
    """Forget every tag, so that generations can be used again."""
    store(cpu + CPU.pde_tag, 0)
    i = 0
    while i < TLB_BYTES:
        store(cpu + CPU.tlb + i, 0)
        i += 16


@notrace
@kernel
def cpu_relax_poll(cpu: int) -> None:
    """Wait a moment in a loop, serving IPIs if interrupts are enabled."""
    irq_poll(cpu)
    cpu_relax()


@kernel
def send_ipi(target: int) -> int:
    """Ask CPU `target` to flush; returns the ticket for `wait_for_ipi`."""
    return atomic_fetch_add(target + CPU.ipi_request, 1) + 1


@notrace
@kernel
def cpu_is_running(target: int) -> int:
    """Tell whether `target` may use its TLB or walk page tables now.

    Call after making the change visible and smp_mb(), which pairs with the one in cpu_idle_exit.
    The acquire pairs with the release in cpu_idle_enter: what an idle CPU wrote through its TLB is
    seen before its frame is read or freed.
    """
    return smp_load_acquire(target + CPU.state) == CpuState.RUNNING


@kernel
def wait_for_ipi(cpu: int, target: int, ticket: int) -> None:
    """Wait until `target` has served `ticket`, or is idle and will flush before it goes on.

    Serves own IPIs meanwhile: two CPUs may be waiting for each other.
    """
    while smp_load_acquire(target + CPU.ipi_done) < ticket:
        if not cpu_is_running(target):
            return
        cpu_relax_poll(cpu)
