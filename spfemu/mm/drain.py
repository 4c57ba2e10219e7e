# SPDX-License-Identifier: MIT
"""What CPUs keep for themselves, collected by who finds nothing else left.

A CPU has lists of its own: free frames, free slots of slabs, and objects that wait for a grace
period.  Before a CPU gives up for lack of one it collects those of all.  That is `drain_all_pages`
(Linux 5.12, mm/page_alloc.c) with `rcu_barrier`; the callbacks go the way of those of a CPU that is
unplugged (kernel/rcu/tree.c: rcutree_migrate_callbacks).

Lists have no lock.  Who drains counts ``SYSTEM.drain_seq`` up, and a running CPU, which sees that
when it reports a quiescent state (`rcu_report_qs`), gives away what it has: it works on none of its
lists there.  An idle CPU may stay so for as long as the drainer holds a lock, so the drainer makes
it FROZEN and does it in its place.  Who goes on from idle waits for that (`cpu_idle_exit`).
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ANON_VMA, CPU, RCU_QUEUE, SYSTEM, VMA
from spfemu.mm.irq import CpuState, cpu_relax_poll
from spfemu.mm.page_alloc import drain_pages
from spfemu.mm.rcu import call_rcu, rcu_barrier, rcu_link, rcu_quiescent, rcu_try_end_gp
from spfemu.mm.slab import slab_drain
from spfemu.mm.spinlock import spin_lock, spin_trylock, spin_unlock
from spfemu.primitives import (
    cmpxchg_acquire,
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
    write_once,
)


@slowpath
def drain_all_pages(cpu: int) -> None:
    """Put all that CPUs keep at everybody's disposal, and free all that waits for a grace period.

    With no spinlock held, and outside RCU read-side sections.  Locks for which others sleep may be
    held: those are idle, or say that they are quiescent.
    """
    system = load(cpu + CPU.system)
    # one at a time: what one has collected is free, or on its lists, when the next one asks for it
    while spin_trylock(cpu, system + SYSTEM.drain_lock) == 0:
        rcu_quiescent(cpu)
        cpu_relax_poll(cpu)
    seq = load(system + SYSTEM.drain_seq) + 1
    store(cpu + CPU.drain_seq, seq)
    write_once(system + SYSTEM.drain_seq, seq)
    target = load(system + SYSTEM.cpus)
    for _ in range(load(system + SYSTEM.nr_cpus)):
        if target != cpu:
            drain_cpu(cpu, target, seq)
        target += CPU.SIZE
    rcu_adopt_callbacks(cpu)
    rcu_barrier(cpu)
    spin_unlock(system + SYSTEM.drain_lock)


@slowpath
def drain_cpu(cpu: int, target: int, seq: int) -> None:
    """Wait until CPU `target` has given away what it has, or do it while it is not running.

    The acquires pair with the releases in drain_local_cpu and cpu_idle_enter, the release with the
    acquire in cpu_idle_exit.
    """
    state = target + CPU.state
    while smp_load_acquire(target + CPU.drain_seq) != seq:
        found = read_once(state)
        if found != CpuState.RUNNING and cmpxchg_acquire(state, found, CpuState.FROZEN) == found:
            # or it would give away its lists for nobody when it goes on
            store(target + CPU.drain_seq, seq)
            drain_lists(cpu, target)
            smp_store_release(state, found)
            return
        # a running CPU looks only when a grace period begins
        rcu_quiescent(cpu)
        rcu_try_end_gp(cpu)
        cpu_relax_poll(cpu)


@slowpath
def drain_local_cpu(cpu: int, seq: int) -> None:
    """Give away what this CPU has, as a drainer has asked for (drain_local_pages_wq)."""
    drain_lists(cpu, cpu)
    smp_store_release(cpu + CPU.drain_seq, seq)


@kernel
def drain_lists(cpu: int, target: int) -> None:
    """Give away what is on the lists of `target`: this CPU, or one that is frozen."""
    drain_pages(cpu, target)
    slab_drain(
        cpu,
        target + CPU.vma_list,
        SYSTEM.vma_lock,
        SYSTEM.vma_free,
        VMA.vm_start,
        load(target + CPU.vma_count),
    )
    slab_drain(
        cpu,
        target + CPU.anon_vma_list,
        SYSTEM.anon_vma_lock,
        SYSTEM.anon_vma_free,
        ANON_VMA.next_free,
        load(target + CPU.anon_vma_count),
    )
    rcu_orphan_callbacks(cpu, target)


@kernel
def rcu_orphan_callbacks(cpu: int, target: int) -> None:
    """Move the objects that wait for a grace period on `target` to the list of orphans."""
    queue = target + CPU.rcu
    orphans = load(cpu + CPU.system) + SYSTEM.rcu_orphans
    spin_lock(cpu, load(cpu + CPU.system) + SYSTEM.rcu_orphan_lock)
    orphan_list(cpu, orphans, load(queue + RCU_QUEUE.wait_head))
    orphan_list(cpu, orphans, load(queue + RCU_QUEUE.head))
    spin_unlock(load(cpu + CPU.system) + SYSTEM.rcu_orphan_lock)
    store(queue + RCU_QUEUE.wait_head, 0)
    store(queue + RCU_QUEUE.head, 0)
    store(queue + RCU_QUEUE.tail, 0)
    store(queue + RCU_QUEUE.nr, 0)


@kernel
def orphan_list(cpu: int, orphans: int, obj: int) -> None:
    """Put `obj` and all that is linked behind it on the list of orphans, whose lock is held."""
    while obj != 0:
        following = load(rcu_link(cpu, obj))
        write_once(rcu_link(cpu, obj), load(orphans))
        store(orphans, obj)
        obj = following


@kernel
def rcu_adopt_callbacks(cpu: int) -> None:
    """Take over all orphans.

    They were unlinked before they were put there, so that what holds for objects that this CPU has
    unlinked holds for them.
    """
    system = load(cpu + CPU.system)
    spin_lock(cpu, system + SYSTEM.rcu_orphan_lock)
    obj = load(system + SYSTEM.rcu_orphans)
    store(system + SYSTEM.rcu_orphans, 0)
    spin_unlock(system + SYSTEM.rcu_orphan_lock)
    while obj != 0:
        following = load(rcu_link(cpu, obj))
        call_rcu(cpu, obj)
        obj = following
