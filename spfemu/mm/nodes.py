# SPDX-License-Identifier: MIT
"""NUMA nodes: which frames and CPUs belong together, if CONFIG_NUMA (Linux 5.12, mm/page_alloc.c).

The frames are divided among the nodes by address.  Each node has a zone; a CPU allocates from that
of its own node, and from others' when it is empty.  A CPU's free lists hold frames of its own node:
what it frees of another goes to that node's zone at once, one by one.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CACHE_LINE, CPU, PAGE, SYSTEM
from spfemu.mm.config import CONFIG_NUMA
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, store

ZONE_CHAINS = SYSTEM.zone_chains - SYSTEM.zone_lock
ZONE_LIST = SYSTEM.zone_list - SYSTEM.zone_lock
ZONE_FREE = SYSTEM.zone_free - SYSTEM.zone_lock
PAGE_STRUCT_SHIFT = 6


@kernel
def node_zone(cpu: int, nid: int) -> int:
    """Address of a node's zone: its lock, and ZONE_* behind it."""
    return load(cpu + CPU.system) + SYSTEM.zone_lock + nid * CACHE_LINE


@kernel
def local_zone(cpu: int) -> int:
    """Address of the zone of this CPU's node."""
    return node_zone(cpu, load(cpu + CPU.node) if CONFIG_NUMA else 0)


@kernel
def page_is_local(cpu: int, page: int) -> int:
    """Tell whether a frame belongs to this CPU's node."""
    return load(cpu + CPU.node_start) <= page < load(cpu + CPU.node_end)


@slowpath
def page_to_nid(cpu: int, page: int) -> int:
    """Return the node of a frame (include/linux/mm.h)."""
    index = (page - load(cpu + CPU.vmemmap)) >> PAGE_STRUCT_SHIFT
    per_node = load(load(cpu + CPU.system) + SYSTEM.frames_per_node)
    nid = 0
    while index >= per_node:
        index -= per_node
        nid += 1
    return nid


@slowpath
def alloc_remote_page(cpu: int) -> int:
    """Take a frame from the next node that has one, or return 0 (get_page_from_freelist)."""
    nr_nodes = load(load(cpu + CPU.system) + SYSTEM.nr_nodes)
    nid = load(cpu + CPU.node)
    for _ in range(nr_nodes - 1):
        nid = nid + 1 if nid + 1 < nr_nodes else 0
        page = zone_take(cpu, node_zone(cpu, nid))
        if page != 0:
            count_vm_event(cpu, Event.NUMA_MISS)
            return page
    return 0


@kernel
def zone_take(cpu: int, zone: int) -> int:
    """Take one frame out of a zone; 0 if it is empty.  A chain is taken apart if need be."""
    spin_lock(cpu, zone)
    page = load(zone + ZONE_LIST)
    if page == 0:
        page = load(zone + ZONE_CHAINS)
        if page != 0:
            store(zone + ZONE_CHAINS, load(page + PAGE.private))
    if page != 0:
        store(zone + ZONE_LIST, load(page + PAGE.lru))
        store(zone + ZONE_FREE, load(zone + ZONE_FREE) - 1)
    spin_unlock(zone)
    return page


@slowpath
def free_remote_page(cpu: int, page: int) -> None:
    """Give a frame back to the zone of its node."""
    zone = node_zone(cpu, page_to_nid(cpu, page))
    spin_lock(cpu, zone)
    store(page + PAGE.lru, load(zone + ZONE_LIST))
    store(zone + ZONE_LIST, page)
    store(zone + ZONE_FREE, load(zone + ZONE_FREE) + 1)
    spin_unlock(zone)
