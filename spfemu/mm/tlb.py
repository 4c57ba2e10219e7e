# SPDX-License-Identifier: MIT
"""TLB flushes and the mmu_gather that collects what may be freed only after them.

Order of an unmap: entries are cleared under the page-table lock, then every TLB is flushed, then
frames and page tables are freed (Linux 5.12, mm/mmu_gather.c, arch/x86/mm/tlb.c).  A flush is
always of the whole TLB; Linux flushes up to 33 single pages one by one.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, CPUMASK_SHIFT, GATHER, GATHER_SHARED, MM, PAGE, SYSTEM, WORD
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.config import CONFIG_MMU_GATHER_RCU_TABLE_FREE
from spfemu.mm.irq import cpu_is_running, local_flush_tlb, send_ipi, wait_for_ipi
from spfemu.mm.page_alloc import put_page
from spfemu.mm.pgtable import free_table_now
from spfemu.mm.rcu import call_rcu
from spfemu.mm.swap_state import free_swap_cache
from spfemu.mm.vmstat import count_vm_event, count_vm_events
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    load,
    read_once,
    smp_load_acquire,
    smp_mb,
    store,
)


@kernel
def flush_tlb_mm(cpu: int, mm: int) -> None:
    """Flush the mm's translations on every CPU that runs it; returns when all have.

    May be called with page-table locks held, never with interrupts off.
    """
    # seq_cst add and full fence: a CPU that goes on from idle either is seen running here or
    # sees the new tlb_gen (pairs with the fence in cpu_idle_exit)
    gen = atomic_fetch_add(mm + MM.tlb_gen, 1) + 1
    smp_mb()
    if load(cpu + CPU.mm) == mm:
        local_flush_tlb(cpu)
        store(cpu + CPU.tlb_gen, gen)
    flush_tlb_others(cpu, mm)


@kernel
def flush_tlb_others(cpu: int, mm: int) -> None:
    """Interrupt the other CPUs of the mm if there are any.

    The acquire pairs with the update in switch_mm: what a CPU has written through its TLB before it
    left the mm is seen before its frames are read or freed.
    """
    system = load(cpu + CPU.system)
    words = (load(system + SYSTEM.nr_cpus) + 31) >> CPUMASK_SHIFT
    me = load(cpu + CPU.id)
    for i in range(words):
        mask = smp_load_acquire(mm + MM.cpumask + i * WORD)
        if i == me >> CPUMASK_SHIFT:
            mask = mask & ~(1 << (me & 31))
        if mask != 0:
            smp_call_function(cpu, mm)
            return


@slowpath
def smp_call_function(cpu: int, mm: int) -> None:
    """Send the IPI to each other running CPU of the mm, then wait for all."""
    system = load(cpu + CPU.system)
    cpus = load(system + SYSTEM.cpus)
    nr_cpus = load(system + SYSTEM.nr_cpus)
    for i in range(nr_cpus):
        target = cpus + i * CPU.SIZE
        if target != cpu and mm_has_cpu(mm, i) and cpu_is_running(target):
            send_ipi(target)
            count_vm_event(cpu, Event.TLB_SHOOTDOWN_SENT)
    for i in range(nr_cpus):
        target = cpus + i * CPU.SIZE
        if target != cpu and mm_has_cpu(mm, i):
            # at least our own request; one sent later by somebody else does no harm
            wait_for_ipi(cpu, target, read_once(target + CPU.ipi_request))


@kernel
def mm_has_cpu(mm: int, index: int) -> int:
    """Tell whether CPU number `index` runs the mm; acquires as `flush_tlb_others`."""
    mask = smp_load_acquire(mm + MM.cpumask + (index >> CPUMASK_SHIFT) * WORD)
    return (mask >> (index & 31)) & 1


@kernel
def tlb_gather_mmu(cpu: int, mm: int) -> None:
    """Begin to collect; one gather per CPU at a time."""
    gather = cpu + CPU.gather
    vm_bug_on(load(gather + GATHER.mm) != 0, Bug.GATHER_NESTED)
    store(gather + GATHER.mm, mm)


@kernel
def tlb_remove_page(cpu: int, page: int) -> int:
    """Collect a frame whose pte has been cleared; returns 1 if that was the last there is room for.

    Then the caller lets go of the page-table lock and calls `tlb_flush_mmu`.  A frame with another
    reference may be collected by another mm's unmapper too, so it cannot be linked by its `lru`.
    With the only reference being that of the pte, nobody can find the frame any more.
    """
    gather = cpu + CPU.gather
    store(gather + GATHER.nr_pages, load(gather + GATHER.nr_pages) + 1)
    if read_once(page + PAGE.refcount) == 1:
        store(page + PAGE.lru, load(gather + GATHER.pages))
        store(gather + GATHER.pages, page)
        return 0
    index = load(gather + GATHER.nr_shared)
    store(gather + GATHER.shared + index * WORD, page)
    store(gather + GATHER.nr_shared, index + 1)
    return index + 1 == GATHER_SHARED


@kernel
def tlb_remove_table(cpu: int, page: int) -> None:
    """Collect a page table that has been unlinked."""
    gather = cpu + CPU.gather
    store(page + PAGE.lru, load(gather + GATHER.tables))
    store(gather + GATHER.tables, page)
    store(gather + GATHER.nr_tables, load(gather + GATHER.nr_tables) + 1)
    store(gather + GATHER.need_flush, 1)


@kernel
def tlb_flush_mmu(cpu: int) -> None:
    """Flush if anything present was cleared, then free what was collected so far."""
    gather = cpu + CPU.gather
    if load(gather + GATHER.need_flush) != 0:
        flush_tlb_mm(cpu, load(gather + GATHER.mm))
        tlb_batch_free(cpu, gather)


@kernel
def tlb_finish_mmu(cpu: int) -> None:
    """Flush and free what was collected, and end the gather."""
    tlb_flush_mmu(cpu)
    store(cpu + CPU.gather + GATHER.mm, 0)
    store(cpu + CPU.gather + GATHER.file_only, 0)


@kernel
def tlb_batch_free(cpu: int, gather: int) -> None:
    """Free the collected frames, then the tables by the scheme that was built in."""
    page = load(gather + GATHER.pages)
    while page != 0:
        following = load(page + PAGE.lru)
        put_page(cpu, page)
        page = following
    for i in range(load(gather + GATHER.nr_shared)):
        page = load(gather + GATHER.shared + i * WORD)
        free_swap_cache(cpu, page)
        put_page(cpu, page)
        store(gather + GATHER.shared + i * WORD, 0)
    count_vm_events(cpu, Event.PAGES_ZAPPED, load(gather + GATHER.nr_pages))
    tables = load(gather + GATHER.nr_tables)
    if tables != 0:
        count_vm_events(cpu, Event.TABLES_FREED, tables)
        atomic_fetch_add_relaxed(load(gather + GATHER.mm) + MM.pgtables, -tables)
        page = load(gather + GATHER.tables)
        while page != 0:
            following = load(page + PAGE.lru)
            if CONFIG_MMU_GATHER_RCU_TABLE_FREE:
                call_rcu(cpu, page)
            else:
                # the flush waited for every CPU to take an IPI: none is walking with them off
                free_table_now(cpu, page)
            page = following
    store(gather + GATHER.pages, 0)
    store(gather + GATHER.nr_pages, 0)
    store(gather + GATHER.nr_shared, 0)
    store(gather + GATHER.tables, 0)
    store(gather + GATHER.nr_tables, 0)
    store(gather + GATHER.need_flush, 0)
