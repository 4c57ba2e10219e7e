# SPDX-License-Identifier: MIT
"""Which mm a CPU runs, and the change from one to another (Linux 5.12, arch/x86/mm/tlb.c).

Differs in that there are no address-space identifiers, so a switch flushes the whole TLB, and no
lazy mode: a CPU leaves an mm before it drops its reference, so nobody runs an mm without users.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, CPUMASK_SHIFT, MM, WORD
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.irq import local_flush_tlb
from spfemu.mm.rss import sync_mm_rss
from spfemu.mm.vmacache import vmacache_flush
from spfemu.primitives import (
    atomic_fetch_and,
    atomic_fetch_or,
    load,
    smp_load_acquire,
    smp_mb,
    store,
    write_once,
)


@kernel
def cpumask_word(mm: int, index: int) -> int:
    """Address of the word of the mm's cpumask in which CPU number `index` has its bit."""
    return mm + MM.cpumask + (index >> CPUMASK_SHIFT) * WORD


@kernel
def switch_mm(cpu: int, next_mm: int) -> None:
    """Let this CPU run `next_mm`, to which the caller holds a reference (switch_mm_irqs_off).

    Not from inside a read-side section or with interrupts off.  No IPI is served on the way: the
    code does not poll.
    """
    vm_bug_on(load(cpu + CPU.rcu_nesting) != 0, Bug.SLEEP_IN_ATOMIC)
    vm_bug_on(load(cpu + CPU.irqs_disabled), Bug.SLEEP_IN_ATOMIC)
    prev = load(cpu + CPU.mm)
    if prev == next_mm:
        return
    sync_mm_rss(cpu)
    bit = 1 << (load(cpu + CPU.id) & 31)
    # Seq_cst update and fence pair with those in flush_tlb_mm: either the flusher sees this CPU in
    # the mask, or this CPU sees the new tlb_gen and with it the changed page table.
    atomic_fetch_or(cpumask_word(next_mm, load(cpu + CPU.id)), bit)
    smp_mb()
    gen = smp_load_acquire(next_mm + MM.tlb_gen)
    write_once(cpu + CPU.mm, next_mm)
    local_flush_tlb(cpu)
    store(cpu + CPU.tlb_gen, gen)
    vmacache_flush(cpu, next_mm)
    # Releases what was written through the TLB to flushers of `prev`, which no longer wait for
    # this CPU (flush_tlb_others, mm_has_cpu).
    atomic_fetch_and(cpumask_word(prev, load(cpu + CPU.id)), ~bit)
