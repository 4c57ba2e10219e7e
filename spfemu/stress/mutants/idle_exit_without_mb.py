# SPDX-License-Identifier: MIT
"""A CPU that goes on from idle looks for flushes before it is seen running.

What the full barrier of switch_mm_irqs_off in Linux is for, for lazy TLBs. It is the one of
these that x86 needs too.

A flush does not interrupt the CPU, which looks idle, and the CPU does not see that there was
one: it writes to a frame through an entry that is gone.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM
from spfemu.mm.irq import CpuState, local_flush_tlb, serve_ipi
from spfemu.primitives import load, read_once, smp_load_acquire, store, write_once

PROTOCOL = "spf"
PROMISE = "TLB"
SCHEDULE = "write_by_a_cpu_that_is_seen_idle"


@kernel
def cpu_idle_exit(cpu: int) -> None:
    """Go on running, with nothing between the state and the look at tlb_gen."""
    write_once(cpu + CPU.state, CpuState.RUNNING)
    mm = load(cpu + CPU.mm)
    gen = smp_load_acquire(mm + MM.tlb_gen)
    if gen != load(cpu + CPU.tlb_gen):
        store(cpu + CPU.tlb_gen, gen)
        local_flush_tlb(cpu)
    if read_once(cpu + CPU.ipi_request) != load(cpu + CPU.ipi_done):
        serve_ipi(cpu)
