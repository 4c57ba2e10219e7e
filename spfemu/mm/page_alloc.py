# SPDX-License-Identifier: MIT
"""Frames: per-CPU free lists over a global pool (Linux 5.12, mm/page_alloc.c: rmqueue_pcplist).

A CPU has a list that it allocates from and frees to, and a spare one that is empty or full; a full
list moves to or from the pool as one chain, so the pool's lock is taken once in PCP_BATCH frames.
Differs from the buddy allocator in that only single frames exist.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE, PAGE_SHIFT, RECLAIM, SYSTEM
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.config import CONFIG_NUMA
from spfemu.mm.flags import PAGE_KIND_MASK, PageKind, Pg
from spfemu.mm.huge_page_alloc import free_huge_subpage
from spfemu.mm.nodes import (
    ZONE_CHAINS,
    ZONE_FREE,
    ZONE_LIST,
    alloc_remote_page,
    free_remote_page,
    local_zone,
    page_is_local,
)
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    clear_page,
    load,
    smp_load_acquire,
    store,
)

if TYPE_CHECKING:  # the engines resolve calls by name: importing these would be circular
    from spfemu.mm.vmscan import alloc_pages_slowpath, wakeup_kswapd

PCP_BATCH = 63
"""Frames that move between a CPU's list and the pool at once (Linux: pcp->batch)."""
PAGE_STRUCT_SHIFT = 6  # struct page is one cache line


@kernel
def page_address(cpu: int, page: int) -> int:
    """Address of the frame that `page` describes."""
    index = (page - load(cpu + CPU.vmemmap)) >> PAGE_STRUCT_SHIFT
    return load(cpu + CPU.frames) + (index << PAGE_SHIFT)


@kernel
def virt_to_page(cpu: int, address: int) -> int:
    """Return the PAGE of the frame at or around `address`."""
    index = (address - load(cpu + CPU.frames)) >> PAGE_SHIFT
    return load(cpu + CPU.vmemmap) + (index << PAGE_STRUCT_SHIFT)


@kernel
def page_kind(page: int) -> int:
    """What the frame is used for: a PageKind."""
    return load(page + PAGE.flags) & PAGE_KIND_MASK


@kernel
def rmqueue(cpu: int) -> int:
    """Take a free frame off this CPU's list, refilled if need be; returns its PAGE, or 0."""
    page = load(cpu + CPU.pcp_list)
    if page == 0:
        page = rmqueue_bulk(cpu)
        if CONFIG_NUMA and page == 0:
            return alloc_remote_page(cpu)
        if page == 0:
            return 0
    if CONFIG_NUMA:
        count_vm_event(cpu, Event.NUMA_HIT)
    store(cpu + CPU.pcp_list, load(page + PAGE.lru))
    store(cpu + CPU.pcp_count, load(cpu + CPU.pcp_count) - 1)
    return page


@kernel
def prep_new_page(page: int, kind: int) -> None:
    """Make a frame that was taken off the list one of `kind`, with one reference."""
    store(page + PAGE.flags, kind)
    store(page + PAGE.refcount, 1)


@kernel
def alloc_page(cpu: int, kind: int) -> int:
    """Take a frame with one reference; returns its PAGE, or 0 when there is none.

    The contents are what the last user left.  May reclaim memory, so not under a spinlock.
    """
    page = rmqueue(cpu)
    if page == 0:
        page = alloc_pages_slowpath(cpu)
        if page == 0:
            return 0
    prep_new_page(page, kind)
    return page


@kernel
def alloc_zeroed_page(cpu: int, kind: int) -> int:
    """Take a frame and clear it; returns its PAGE or 0."""
    page = alloc_page(cpu, kind)
    if page != 0:
        clear_page(page_address(cpu, page))
    return page


@kernel
def memalloc_noreclaim_save(cpu: int) -> None:
    """Let allocations of this CPU fail rather than reclaim (include/linux/sched/mm.h)."""
    reclaim = cpu + CPU.reclaim
    store(reclaim + RECLAIM.forbidden, load(reclaim + RECLAIM.forbidden) + 1)


@kernel
def memalloc_noreclaim_restore(cpu: int) -> None:
    """End that."""
    reclaim = cpu + CPU.reclaim
    store(reclaim + RECLAIM.forbidden, load(reclaim + RECLAIM.forbidden) - 1)


@slowpath
def rmqueue_bulk(cpu: int) -> int:
    """Refill the CPU's empty list; returns its first frame or 0."""
    spare = load(cpu + CPU.pcp_spare)
    if spare != 0:
        store(cpu + CPU.pcp_list, spare)
        store(cpu + CPU.pcp_count, PCP_BATCH)
        store(cpu + CPU.pcp_spare, 0)
        store(cpu + CPU.pcp_spare_count, 0)
        return spare
    count_vm_event(cpu, Event.ZONE_REFILL)
    zone = local_zone(cpu)
    spin_lock(cpu, zone)
    count = 0
    page = load(zone + ZONE_CHAINS)
    if page != 0:
        store(zone + ZONE_CHAINS, load(page + PAGE.private))
        count = PCP_BATCH
    else:
        page, count = take_single_pages(zone)
    store(zone + ZONE_FREE, load(zone + ZONE_FREE) - count)
    low = load(zone + ZONE_FREE) < load(load(cpu + CPU.system) + SYSTEM.wmark_low)
    spin_unlock(zone)
    if low:
        wakeup_kswapd(cpu)
    store(cpu + CPU.pcp_list, page)
    store(cpu + CPU.pcp_count, count)
    return page


@kernel
def take_single_pages(zone: int) -> tuple[int, int]:
    """Take up to PCP_BATCH of the pool's frames that are in no chain: (their list, how many)."""
    first = load(zone + ZONE_LIST)
    count = 0
    last = 0
    page = first
    while page != 0 and count < PCP_BATCH:
        last = page
        page = load(page + PAGE.lru)
        count += 1
    if last != 0:
        store(last + PAGE.lru, 0)
    store(zone + ZONE_LIST, page)
    return first, count


@slowpath
def drain_pages(cpu: int, target: int) -> None:
    """Give what is on the lists of `target`, this CPU or one that is frozen, to the pool.

    The full one goes as a chain, others one by one.
    """
    zone = local_zone(target)
    page = load(target + CPU.pcp_list)
    chain = load(target + CPU.pcp_spare)
    drained = load(target + CPU.pcp_count) + load(target + CPU.pcp_spare_count)
    spin_lock(cpu, zone)
    while page != 0:
        following = load(page + PAGE.lru)
        store(page + PAGE.lru, load(zone + ZONE_LIST))
        store(zone + ZONE_LIST, page)
        page = following
    if chain != 0:
        store(chain + PAGE.private, load(zone + ZONE_CHAINS))
        store(zone + ZONE_CHAINS, chain)
    store(zone + ZONE_FREE, load(zone + ZONE_FREE) + drained)
    spin_unlock(zone)
    store(target + CPU.pcp_list, 0)
    store(target + CPU.pcp_count, 0)
    store(target + CPU.pcp_spare, 0)
    store(target + CPU.pcp_spare_count, 0)


@kernel
def free_page(cpu: int, page: int) -> None:
    """Give back a frame that nobody can reach any more."""
    if load(page + PAGE.flags) & Pg.COMPOUND:
        free_huge_subpage(cpu, page)
        return
    if CONFIG_NUMA and page_is_local(cpu, page) == 0:
        store(page + PAGE.flags, PageKind.FREE)
        free_remote_page(cpu, page)
        return
    if load(cpu + CPU.pcp_count) >= PCP_BATCH:
        free_pcppages_bulk(cpu)
    store(page + PAGE.flags, PageKind.FREE)
    store(page + PAGE.lru, load(cpu + CPU.pcp_list))
    store(cpu + CPU.pcp_list, page)
    store(cpu + CPU.pcp_count, load(cpu + CPU.pcp_count) + 1)


@slowpath
def free_pcppages_bulk(cpu: int) -> None:
    """Make room: the full list becomes the spare one, and a full spare one goes to the pool."""
    spare = load(cpu + CPU.pcp_spare)
    if spare != 0:
        count_vm_event(cpu, Event.ZONE_DRAIN)
        zone = local_zone(cpu)
        spin_lock(cpu, zone)
        store(spare + PAGE.private, load(zone + ZONE_CHAINS))
        store(zone + ZONE_CHAINS, spare)
        store(zone + ZONE_FREE, load(zone + ZONE_FREE) + PCP_BATCH)
        spin_unlock(zone)
    store(cpu + CPU.pcp_spare, load(cpu + CPU.pcp_list))
    store(cpu + CPU.pcp_spare_count, PCP_BATCH)
    store(cpu + CPU.pcp_list, 0)
    store(cpu + CPU.pcp_count, 0)


@kernel
def get_page(page: int) -> None:
    """Take another reference to a frame that is known to have one."""
    atomic_fetch_add_relaxed(page + PAGE.refcount, 1)


@kernel
def put_page(cpu: int, page: int) -> None:
    """Drop a reference; the last one frees the frame.

    Whoever finds its own to be the only one needs no atomic update: the caller has unmapped the
    frame and flushed, so nobody can find it to take another.  The acquire pairs with the release
    in the update of an earlier dropper: its accesses come before the reuse.
    """
    if smp_load_acquire(page + PAGE.refcount) == 1:
        store(page + PAGE.refcount, 0)
        free_page(cpu, page)
        return
    old = atomic_fetch_add(page + PAGE.refcount, -1)
    vm_bug_on(old < 1, Bug.REFCOUNT_UNDERFLOW)
    if old == 1:
        free_page(cpu, page)
