# SPDX-License-Identifier: MIT
"""The swap area: slots of a page each, who holds them, which are free (Linux 6.1, mm/swapfile.c).

A slot is in use while a pte holds its entry or the swap cache has a page for it.  Slots stand in
clusters with a lock each, and each CPU takes slots from a cluster of its own as long as that has
any, so CPUs that swap out at the same time do not meet.  Differs in that free slots of a cluster
are a list, and that a CPU looks for its next cluster without a lock.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, RECLAIM, SWAP_CLUSTER, SWAP_SLOT, SYSTEM
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.swapops import swp_entry_to_pte, swp_offset
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, store, write_once

SWAPFILE_CLUSTER_SHIFT = 8
SWAPFILE_CLUSTER = 1 << SWAPFILE_CLUSTER_SHIFT
"""Slots in a cluster."""


@kernel
def swap_slot(cpu: int, entry: int) -> int:
    """Address of the SWAP_SLOT that `entry` names."""
    return load(load(cpu + CPU.system) + SYSTEM.swap_slots) + swp_offset(entry) * SWAP_SLOT.SIZE


@kernel
def swap_cluster(cpu: int, entry: int) -> int:
    """Address of the SWAP_CLUSTER of that slot."""
    index = swp_offset(entry) >> SWAPFILE_CLUSTER_SHIFT
    return load(load(cpu + CPU.system) + SYSTEM.swap_clusters) + index * SWAP_CLUSTER.SIZE


@slowpath
def get_swap_page(cpu: int, page: int) -> int:
    """Take a free slot for `page`, as its page in the swap cache; returns its entry, 0 if none.

    The caller has the page locked and counts the cache's reference.
    """
    system = load(cpu + CPU.system)
    clusters = load(system + SYSTEM.nr_swap_clusters)
    index = load(cpu + CPU.reclaim + RECLAIM.swap_cluster)
    for _ in range(clusters):
        cluster = load(system + SYSTEM.swap_clusters) + index * SWAP_CLUSTER.SIZE
        if read_once(cluster + SWAP_CLUSTER.nr_free) != 0:
            slot = swap_cluster_alloc(cpu, cluster, page)
            if slot != 0:
                store(cpu + CPU.reclaim + RECLAIM.swap_cluster, index)
                offset = (slot - load(system + SYSTEM.swap_slots)) // SWAP_SLOT.SIZE
                return swp_entry_to_pte(offset)
        index += 1
        if index == clusters:
            index = 0
    count_vm_event(cpu, Event.SWAP_FULL)
    return 0


@kernel
def swap_cluster_alloc(cpu: int, cluster: int, page: int) -> int:
    """Take a slot of one cluster for `page`; returns its SWAP_SLOT or 0."""
    spin_lock(cpu, cluster + SWAP_CLUSTER.lock)
    slot = load(cluster + SWAP_CLUSTER.free)
    if slot != 0:
        store(cluster + SWAP_CLUSTER.free, load(slot + SWAP_SLOT.next))
        write_once(cluster + SWAP_CLUSTER.nr_free, load(cluster + SWAP_CLUSTER.nr_free) - 1)
        write_once(slot + SWAP_SLOT.page, page)
    spin_unlock(cluster + SWAP_CLUSTER.lock)
    return slot


@kernel
def swap_slot_free_if_unused(cluster: int, slot: int) -> None:
    """Put a slot that nobody holds any more back; needs the cluster's lock."""
    if load(slot + SWAP_SLOT.count) == 0 and load(slot + SWAP_SLOT.page) == 0:
        store(slot + SWAP_SLOT.next, load(cluster + SWAP_CLUSTER.free))
        store(cluster + SWAP_CLUSTER.free, slot)
        write_once(cluster + SWAP_CLUSTER.nr_free, load(cluster + SWAP_CLUSTER.nr_free) + 1)


@kernel
def swap_duplicate(cpu: int, entry: int) -> None:
    """Count another pte that is about to hold `entry`; the caller sees that the slot is in use."""
    cluster = swap_cluster(cpu, entry)
    slot = swap_slot(cpu, entry)
    spin_lock(cpu, cluster + SWAP_CLUSTER.lock)
    write_once(slot + SWAP_SLOT.count, load(slot + SWAP_SLOT.count) + 1)
    spin_unlock(cluster + SWAP_CLUSTER.lock)


@kernel
def swap_free(cpu: int, entry: int) -> int:
    """Count one pte less that holds `entry`; returns how many are left."""
    cluster = swap_cluster(cpu, entry)
    slot = swap_slot(cpu, entry)
    spin_lock(cpu, cluster + SWAP_CLUSTER.lock)
    count = load(slot + SWAP_SLOT.count) - 1
    vm_bug_on(count < 0, Bug.REFCOUNT_UNDERFLOW)
    write_once(slot + SWAP_SLOT.count, count)
    swap_slot_free_if_unused(cluster, slot)
    spin_unlock(cluster + SWAP_CLUSTER.lock)
    return count


@kernel
def swap_count(cpu: int, entry: int) -> int:
    """Return how many ptes hold `entry`; it may change at any time."""
    return read_once(swap_slot(cpu, entry) + SWAP_SLOT.count)


@kernel
def vm_swap_full(cpu: int, entry: int) -> int:
    """Tell whether slots are better not kept for pages that are in memory: half of them is taken.

    Looks at the cluster of `entry` only; the kernel at all of the swap area.
    """
    cluster = swap_cluster(cpu, entry)
    free = read_once(cluster + SWAP_CLUSTER.nr_free)
    return free * 2 < load(cluster + SWAP_CLUSTER.nr_slots)
