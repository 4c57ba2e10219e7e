# SPDX-License-Identifier: MIT
"""RCU: an object that has been unlinked is freed when no reader can hold a pointer to it any more.

The flavour is quiescent-state based (Linux: tree RCU without preemption, kernel/rcu/tree.c; also
QSBR in userspace RCU): readers pay nothing, because a CPU is quiescent wherever it is not inside
a read-side section and says so between operations, in the slow paths of sleeping locks, and by
being idle or offline.

Grace periods are numbered; ``SYSTEM.rcu_gp`` is the running one.  Grace period N may end when
every CPU has either reported a quiescent state in it (``CPU.rcu_qs >= N``) or was not running at
some time since it began; any CPU may find that out and end it.  An object unlinked before
``rcu_gp`` was seen as G has to wait for the end of G + 1: G itself may have begun, and a CPU may
have reported in it and read the pointer again, before the unlinking::

    updater    |--------- unlink x --- mb(A) --- sees G                            frees x
    rcu_gp     | G                                   | G + 1                     | G + 2
    reader     |  reports G  [reads x ........]   reports G + 1, mb(C) [cannot see x]

Why a grace period never ends early.  Let a section on CPU C hold x, which updater U unlinked and
then saw grace period G.  The end of G + 1 needs C:

1. C reported G + 1 after the section ended (in rcu_report_qs).  The section comes before the
   release store of rcu_qs, which the CPU that ends G + 1 has read with acquire, and ending it is a
   seq_cst read-modify-write of rcu_gp that U (or whoever runs U's callbacks: it is U) has read with
   acquire.  The section happens before the free.
2. C reported G + 1 before the section began.  C saw rcu_gp = G + 1, then passed fence C, then read
   the pointer to x; U unlinked x, passed fence A, then saw rcu_gp = G.  If C's section read the
   old pointer, C's fence would come before A's (it reads what U overwrote), and A's before C's
   (U saw what the start of G + 1 overwrote): impossible, for seq_cst fences have one order.
3. C was found not running.  Before the section: the CPU that found it passed fence B after it saw
   G + 1 and before it read the state, and C passes the fence in cpu_idle_exit between going on
   running and the section, so by the same argument, through B, the section cannot see x.  After
   the section: the release in cpu_idle_enter pairs with the acquire of the state, as in 1.

Differs from the kernel: no combining tree (a CPU remembers how far it got in the list of CPUs, so
a grace period costs each interested CPU one pass), no grace-period thread (whoever waits does the
work), and grace periods run only while a CPU waits for one.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE, RCU_QUEUE, SYSTEM, VMA
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.config import CONFIG_DEBUG_VM
from spfemu.mm.flags import PageKind
from spfemu.mm.irq import CpuState, cpu_relax_poll
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    cmpxchg,
    load,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    store,
    write_once,
)

if TYPE_CHECKING:  # the engines resolve calls by name: importing these would be circular
    from spfemu.mm.drain import drain_local_cpu
    from spfemu.mm.page_alloc import page_kind, put_page
    from spfemu.mm.pgtable import free_table_now
    from spfemu.mm.vma import vm_area_free_rcu

RCU_BLIMIT = 10
"""Callbacks run at once (Linux: rcutree.blimit)."""
RCU_QHIMARK = 1000
"""Callbacks queued from which all that are ready run at once (Linux: rcutree.qhimark, 10000)."""


@kernel
def rcu_read_lock(cpu: int) -> None:
    """Enter a read-side section; nests.  Costs nothing in measured builds, as in the kernel.

    The count is for assertions only: what orders a section is the report in rcu_report_qs.
    """
    if CONFIG_DEBUG_VM:
        store(cpu + CPU.rcu_nesting, load(cpu + CPU.rcu_nesting) + 1)


@kernel
def rcu_read_unlock(cpu: int) -> None:
    """Leave a read-side section."""
    if CONFIG_DEBUG_VM:
        nesting = load(cpu + CPU.rcu_nesting)
        vm_bug_on(nesting <= 0, Bug.RCU_UNBALANCED)
        store(cpu + CPU.rcu_nesting, nesting - 1)


@kernel
def rcu_quiescent(cpu: int) -> None:
    """Say that this CPU is outside any section, if a grace period began since it last said so."""
    gp = read_once(load(cpu + CPU.system) + SYSTEM.rcu_gp)
    if gp != load(cpu + CPU.rcu_qs):
        rcu_report_qs(cpu, gp)


@slowpath
def rcu_report_qs(cpu: int, gp: int) -> None:
    """Report a quiescent state in grace period `gp` (Linux: rcu_report_qs_rdp).

    The release pairs with the acquire in rcu_cpu_quiescent (case 1 above); the fence is fence C
    of case 2, it pairs with those in rcu_start_waiting and synchronize_rcu.
    """
    vm_bug_on(load(cpu + CPU.rcu_nesting) != 0, Bug.RCU_UNBALANCED)
    smp_store_release(cpu + CPU.rcu_qs, gp)
    smp_mb()
    seq = read_once(load(cpu + CPU.system) + SYSTEM.drain_seq)
    if seq != load(cpu + CPU.drain_seq):
        drain_local_cpu(cpu, seq)


@kernel
def call_rcu(cpu: int, obj: int) -> None:
    """Free `obj` after a grace period; it must be unlinked already.

    `obj` is a VMA, the PAGE of a page table, or one that has left a page cache.  Its first word (of
    a PAGE: its list link) is overwritten at once, as by the kernel's rcu_head overlay: a late
    reader must not believe what it finds there.
    """
    queue = cpu + CPU.rcu
    write_once(rcu_link(cpu, obj), 0)
    tail = load(queue + RCU_QUEUE.tail)
    if tail == 0:
        store(queue + RCU_QUEUE.head, obj)
    else:
        write_once(rcu_link(cpu, tail), obj)
    store(queue + RCU_QUEUE.tail, obj)
    store(queue + RCU_QUEUE.nr, load(queue + RCU_QUEUE.nr) + 1)


@kernel
def rcu_link(cpu: int, obj: int) -> int:
    """Return the address of the word that links `obj` in a queue.

    The frames' PAGEs come after the VMA slab in the segment, so one comparison tells them apart.
    """
    if obj < load(cpu + CPU.vma_slab_end):
        return obj + VMA.vm_start
    return obj + PAGE.lru


@kernel
def rcu_check_callbacks(cpu: int) -> None:
    """Push this CPU's callbacks on; call outside read-side sections (Linux: rcu_sched_clock_irq).

    With nothing queued it costs one load of the CPU's own line.
    """
    if load(cpu + CPU.rcu + RCU_QUEUE.nr) != 0:
        rcu_core(cpu)


@slowpath
def rcu_core(cpu: int) -> None:
    """Run callbacks whose grace period has ended, else try to end it (Linux: rcu_core)."""
    queue = cpu + CPU.rcu
    if load(queue + RCU_QUEUE.wait_head) != 0:
        # Acquire pairs with the cmpxchg in rcu_try_end_gp: sections come before the callbacks.
        gp = smp_load_acquire(load(cpu + CPU.system) + SYSTEM.rcu_gp)
        if gp > load(queue + RCU_QUEUE.gp):
            rcu_do_batch(cpu)
        else:
            rcu_try_end_gp(cpu)
    if load(queue + RCU_QUEUE.wait_head) == 0:
        rcu_start_waiting(cpu)


@slowpath
def rcu_start_waiting(cpu: int) -> None:
    """Let all newly queued objects wait for one grace period (Linux: rcu_accelerate_cbs)."""
    queue = cpu + CPU.rcu
    store(queue + RCU_QUEUE.wait_head, load(queue + RCU_QUEUE.head))
    store(queue + RCU_QUEUE.head, 0)
    store(queue + RCU_QUEUE.tail, 0)
    store(queue + RCU_QUEUE.gp, rcu_next_gp(cpu))


@kernel
def rcu_next_gp(cpu: int) -> int:
    """Return the first grace period that begins after everything that this CPU unlinked.

    The fence is fence A: unlinking before looking at rcu_gp.  It pairs with the fences in
    rcu_report_qs and cpu_idle_exit.
    """
    smp_mb()
    return read_once(load(cpu + CPU.system) + SYSTEM.rcu_gp) + 1


@slowpath
def rcu_do_batch(cpu: int) -> None:
    """Free objects that have waited long enough, a bounded number unless too many are queued."""
    queue = cpu + CPU.rcu
    limit = RCU_BLIMIT
    if load(queue + RCU_QUEUE.nr) > RCU_QHIMARK:
        limit = load(queue + RCU_QUEUE.nr)
    while limit > 0:
        # a callback may sleep, and a drainer take the rest meanwhile
        obj = load(queue + RCU_QUEUE.wait_head)
        if obj == 0:
            return
        store(queue + RCU_QUEUE.wait_head, load(rcu_link(cpu, obj)))
        store(queue + RCU_QUEUE.nr, load(queue + RCU_QUEUE.nr) - 1)
        count_vm_event(cpu, Event.RCU_CALLBACK)
        if obj < load(cpu + CPU.vma_slab_end):
            vm_area_free_rcu(cpu, obj)
        elif page_kind(obj) == PageKind.TABLE:
            free_table_now(cpu, obj)
        else:
            put_page(cpu, obj)
        limit -= 1


@slowpath
def rcu_try_end_gp(cpu: int) -> None:
    """End the running grace period if every CPU has been quiescent in it (Linux: rcu_gp_fqs).

    A CPU once found quiescent stays so for this grace period, so the search goes on where it
    stopped last time.
    """
    system = load(cpu + CPU.system)
    queue = cpu + CPU.rcu
    # Acquire: what earlier grace periods ordered holds for this one.
    gp = smp_load_acquire(system + SYSTEM.rcu_gp)
    # Fence B: having seen that `gp` runs before looking at any CPU's state; pairs with the one in
    # cpu_idle_exit.
    smp_mb()
    index = load(queue + RCU_QUEUE.scan_cpu)
    if load(queue + RCU_QUEUE.scan_gp) != gp:
        store(queue + RCU_QUEUE.scan_gp, gp)
        index = 0
    nr_cpus = load(system + SYSTEM.nr_cpus)
    target = load(system + SYSTEM.cpus) + index * CPU.SIZE
    while index < nr_cpus and rcu_cpu_quiescent(target, gp):
        index += 1
        target += CPU.SIZE
    store(queue + RCU_QUEUE.scan_cpu, index)
    # Seq_cst: releases what the search acquired to all who acquire a later rcu_gp.
    if index == nr_cpus and cmpxchg(system + SYSTEM.rcu_gp, gp, gp + 1) == gp:
        count_vm_event(cpu, Event.RCU_GP)


@kernel
def rcu_cpu_quiescent(target: int, gp: int) -> int:
    """Tell whether CPU `target` has been outside any section since grace period `gp` began.

    The acquires pair with the releases in rcu_report_qs and cpu_idle_enter: sections that ended
    before are over for whoever ends the grace period.
    """
    if smp_load_acquire(target + CPU.rcu_qs) >= gp:
        return 1
    return smp_load_acquire(target + CPU.state) != CpuState.RUNNING


@slowpath
def synchronize_rcu(cpu: int) -> None:
    """Wait until every read-side section that runs now has ended; not from inside one.

    Serves IPIs and reports its own quiescent states meanwhile.  Does not run callbacks.
    """
    vm_bug_on(load(cpu + CPU.rcu_nesting) != 0, Bug.SLEEP_IN_ATOMIC)
    gp = rcu_next_gp(cpu)
    # Acquire pairs with the cmpxchg in rcu_try_end_gp.
    while smp_load_acquire(load(cpu + CPU.system) + SYSTEM.rcu_gp) <= gp:
        rcu_quiescent(cpu)
        rcu_try_end_gp(cpu)
        cpu_relax_poll(cpu)


@slowpath
def rcu_barrier(cpu: int) -> None:
    """Wait until all callbacks queued on this CPU have run, and run them.

    The kernel's waits for every CPU's; only the owner of a queue touches it here, so teardown
    calls this for each CPU.
    """
    vm_bug_on(load(cpu + CPU.rcu_nesting) != 0, Bug.SLEEP_IN_ATOMIC)
    while load(cpu + CPU.rcu + RCU_QUEUE.nr) != 0:
        rcu_quiescent(cpu)
        rcu_core(cpu)
        cpu_relax_poll(cpu)
