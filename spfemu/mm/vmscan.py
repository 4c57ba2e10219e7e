# SPDX-License-Identifier: MIT
"""Reclaim: pages that are not used are written to the swap area and their frames freed.

A reclaimer walks the page tables of all processes, as the aging of the multi-generational LRU does
(Linux 6.1, mm/vmscan.c).  A page with the accessed bit set loses the bit and has a second chance;
others are collected, unmapped everywhere, written, and freed.  Differs in that there are no lists
of pages: what one walk collects is evicted at once, and the next goes on where it ended.  Lists
would add writes to shared lines to every fault.

Pages of the page cache are not reclaimed.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE, PAGE_SHIFT, RECLAIM, SWAP_CLUSTER_MAX, SYSTEM, VMA, WORD
from spfemu.mm.drain import drain_all_pages
from spfemu.mm.flags import PTE_ADDR_MASK, PageKind, Pg, Pte, Vm
from spfemu.mm.gup import page_maybe_dma_pinned
from spfemu.mm.mm_struct import mmget_not_zero
from spfemu.mm.mmap_lock import HELD_OTHER, mmap_read_trylock, mmap_read_unlock
from spfemu.mm.nodes import ZONE_FREE, node_zone
from spfemu.mm.page_alloc import (
    drain_pages,
    free_page,
    get_page,
    memalloc_noreclaim_restore,
    memalloc_noreclaim_save,
    page_kind,
    put_page,
    rmqueue,
    virt_to_page,
)
from spfemu.mm.page_lock import trylock_page
from spfemu.mm.pgtable import pmd_bad, pte_lockptr, pte_offset, pte_present
from spfemu.mm.rmap_walk import page_mapped, page_referenced, try_to_unmap
from spfemu.mm.sched import cond_resched, cpu_sleep
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.swap_state import (
    add_to_swap,
    lookup_swap_cache,
    page_swapcache,
    remove_mapping,
    swap_writepage,
    try_to_free_swap,
    unlock_swap_page,
)
from spfemu.mm.swapops import is_swap_pte, pte_to_swp_entry
from spfemu.mm.vma import find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.mm.zap import find_pmd_range
from spfemu.primitives import (
    atomic_fetch_and,
    cmpxchg,
    futex_wake,
    load,
    read_once,
    smp_load_acquire,
    store,
    write_once,
    xchg,
)

if TYPE_CHECKING:  # the engines resolve calls by name: importing these would be circular
    from spfemu.mm.fork import mmput

RECLAIM_PASSES = 4
"""Walks over all processes after which there is nothing to reclaim: the first may begin anywhere,
the second takes the accessed bits."""
MAX_RECLAIM_RETRIES = 16
"""Times in a row that an allocation finds nothing to reclaim before it gives up."""
CACHE_AND_LIST = 2
"""References to a page that is about to be freed."""
KSWAPD_SLEEP_NS = 20_000_000


# Collecting pages


@kernel
def count_scanned(cpu: int) -> None:
    """Note that there is something that might be reclaimed (scan_control.nr_scanned)."""
    reclaim = cpu + CPU.reclaim
    store(reclaim + RECLAIM.nr_scanned, load(reclaim + RECLAIM.nr_scanned) + 1)


@kernel
def isolate_page(cpu: int, page: int) -> None:
    """Put a page, with the reference that the caller has to it, on this CPU's list."""
    reclaim = cpu + CPU.reclaim
    count = load(reclaim + RECLAIM.nr_pages)
    store(reclaim + RECLAIM.pages + count * WORD, page)
    store(reclaim + RECLAIM.nr_pages, count + 1)


@kernel
def can_evict(cpu: int, page: int) -> int:
    """Tell whether a page is of a kind to be evicted; without a swap area few are.

    Source: can_reclaim_anon_pages.
    """
    if page_kind(page) != PageKind.ANON or load(page + PAGE.mapping) == 0:
        return 0
    if load(page + PAGE.flags) & Pg.LAZYFREE:
        return 1
    return load(load(cpu + CPU.system) + SYSTEM.nr_swap) != 0


@kernel
def isolate_pte(cpu: int, pte: int) -> None:
    """Collect the page of one pte if it has not been used; needs the page-table lock.

    A page that is mapped no more and still in the swap cache is found by an entry.
    """
    entry = read_once(pte)
    if pte_present(entry):
        if entry & Pte.SPECIAL:
            return
        page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
        if can_evict(cpu, page) == 0:
            return
        count_vm_event(cpu, Event.PGSCAN)
        count_scanned(cpu)
        if entry & Pte.ACCESSED:
            atomic_fetch_and(pte, ~Pte.ACCESSED)
            count_vm_event(cpu, Event.PGACTIVATE)
            return
        get_page(page)
        isolate_page(cpu, page)
    elif is_swap_pte(entry):
        page = lookup_swap_cache(cpu, pte_to_swp_entry(entry))
        if page != 0:
            count_scanned(cpu)
            isolate_page(cpu, page)


@kernel
def isolate_pte_range(cpu: int, pmd: int, start: int, end: int) -> int:
    """Collect from one table until the list is full; returns where it ended."""
    ptl = pte_lockptr(cpu, pmd)
    pte = pte_offset(pmd, start)
    address = start
    spin_lock(cpu, ptl)
    while address < end and load(cpu + CPU.reclaim + RECLAIM.nr_pages) < SWAP_CLUSTER_MAX:
        isolate_pte(cpu, pte)
        pte += WORD
        address += 1 << PAGE_SHIFT
    spin_unlock(ptl)
    return address


@kernel
def isolate_vma(cpu: int, vma: int, start: int) -> int:
    """Collect from `start` in one VMA until the list is full; returns where it ended."""
    end = load(vma + VMA.vm_end)
    if load(vma + VMA.anon_vma) == 0 or load(vma + VMA.vm_flags) & Vm.LOCKED:
        return end
    mm = load(vma + VMA.vm_mm)
    address = start
    while address < end and load(cpu + CPU.reclaim + RECLAIM.nr_pages) < SWAP_CLUSTER_MAX:
        slot, next_ = find_pmd_range(mm, address, end)
        if slot != 0:
            pmd = read_once(slot)
            if pmd_bad(pmd) == 0:
                next_ = isolate_pte_range(cpu, pmd, address, next_)
        address = next_
    return address if address < end else end


@kernel
def isolate_mm(cpu: int, mm: int) -> int:
    """Collect pages of one process from where the last walk ended; 0 once its end is reached.

    Only tries for the mmap lock: a process that maps and unmaps is left alone.  A fault or fork
    that reclaims has the lock of its own process already, which others may be waiting for.
    """
    held = load(cpu + CPU.mmap_lock_held)
    own = held != 0 and (held & HELD_OTHER) == 0 and load(cpu + CPU.mm) == mm
    if own == 0 and mmap_read_trylock(cpu, mm) == 0:
        count_scanned(cpu)
        return 0
    address = read_once(mm + MM.scan_address)
    vma = find_vma(cpu, mm, address)
    while vma != 0 and load(cpu + CPU.reclaim + RECLAIM.nr_pages) < SWAP_CLUSTER_MAX:
        first = load(vma + VMA.vm_start)
        address = isolate_vma(cpu, vma, first if first > address else address)
        if address == load(vma + VMA.vm_end):
            vma = load(vma + VMA.vm_next)
    if own == 0:
        mmap_read_unlock(cpu, mm)
        store(cpu + CPU.mmap_lock_held, held)
    write_once(mm + MM.scan_address, address if vma != 0 else 0)
    return vma != 0


# Evicting them


@slowpath
def shrink_page_list(cpu: int, ignore_references: int) -> int:
    """Evict the collected pages; returns how many frames were freed."""
    reclaim = cpu + CPU.reclaim
    freed = 0
    for i in range(load(reclaim + RECLAIM.nr_pages)):
        freed += shrink_page(cpu, load(reclaim + RECLAIM.pages + i * WORD), ignore_references)
    store(reclaim + RECLAIM.nr_pages, 0)
    return freed


@kernel
def shrink_page(cpu: int, page: int, ignore_references: int) -> int:
    """Evict one page and drop the reference of the list; returns 1 if the frame was freed."""
    if trylock_page(page) == 0:
        put_page(cpu, page)
        return 0
    if shrink_locked_page(cpu, page, ignore_references):
        count_vm_event(cpu, Event.PGSTEAL)
        return 1
    unlock_swap_page(cpu, page)
    put_page(cpu, page)
    return 0


@kernel
def shrink_locked_page(cpu: int, page: int, ignore_references: int) -> int:
    """Do so for a page that is locked; if it stays, it does with lock and reference."""
    if ignore_references == 0 and page_referenced(cpu, page):
        count_vm_event(cpu, Event.PGACTIVATE)
        return 0
    if page_swapcache(page) == 0:
        if page_mapped(page) == 0 or page_maybe_dma_pinned(page):
            return 0
        if load(page + PAGE.flags) & Pg.LAZYFREE:
            return try_to_unmap(cpu, page) and lazyfree_page(cpu, page)
        if add_to_swap(cpu, page) == 0:
            return 0
    if try_to_unmap(cpu, page) == 0:
        try_to_free_swap(cpu, page)
        return 0
    return pageout(cpu, page)


@kernel
def pageout(cpu: int, page: int) -> int:
    """Write a page that nobody maps any more, unless its slot has it, and free it; 1 if it is gone.

    One that somebody has a reference to may still be written to: it stays, and is dirty.  The
    acquire pairs with the update in put_page: what such a one has written is copied.
    """
    if smp_load_acquire(page + PAGE.refcount) != CACHE_AND_LIST:
        return 0
    if load(page + PAGE.flags) & Pg.DIRTY:
        swap_writepage(cpu, page)
        count_vm_event(cpu, Event.PSWPOUT)
    return remove_mapping(cpu, page)


@kernel
def lazyfree_page(cpu: int, page: int) -> int:
    """Free a page that MADV_FREE gave up and that was unmapped clean; 1 if nobody else has it.

    Of full order: what others did with the page before they let go of it comes before.
    """
    if cmpxchg(page + PAGE.refcount, 1, 0) != 1:
        return 0
    count_vm_event(cpu, Event.PGLAZYFREED)
    free_page(cpu, page)
    return 1


# Who reclaims


@slowpath
def shrink_mm(cpu: int, mm: int, target: int) -> int:
    """Reclaim from one process until `target` frames are free or its end is reached."""
    freed = 0
    more = 1
    while more and freed < target:
        more = isolate_mm(cpu, mm)
        freed += shrink_page_list(cpu, 0)
    return freed


@slowpath
def shrink_mms(cpu: int, target: int) -> int:
    """Reclaim from all processes, each for as long as it is short of `target`; frames freed.

    Begins with the one behind that with which it ended last time.
    """
    system = load(cpu + CPU.system)
    reclaim = cpu + CPU.reclaim
    count = load(system + SYSTEM.nr_mms) + load(system + SYSTEM.nr_spare_mms)
    index = load(reclaim + RECLAIM.next_mm)
    freed = 0
    for _ in range(count):
        mm = load(system + SYSTEM.mms) + index * MM.SIZE
        index += 1
        if index >= count:
            index = 0
        if mmget_not_zero(mm):
            freed += shrink_mm(cpu, mm, target - freed)
            # if this was its last user, the teardown takes its lock: keep the note of what is held
            held = load(cpu + CPU.mmap_lock_held)
            mmput(cpu, mm)
            store(cpu + CPU.mmap_lock_held, held)
        if freed >= target:
            break
    store(reclaim + RECLAIM.next_mm, index)
    return freed


@slowpath
def try_to_free_pages(cpu: int) -> int:
    """Reclaim some frames for this CPU; returns how many were freed."""
    memalloc_noreclaim_save(cpu)
    store(cpu + CPU.reclaim + RECLAIM.nr_scanned, 0)
    freed = 0
    for _ in range(RECLAIM_PASSES):
        if freed < SWAP_CLUSTER_MAX:
            freed += shrink_mms(cpu, SWAP_CLUSTER_MAX - freed)
    memalloc_noreclaim_restore(cpu)
    return freed


@slowpath
def alloc_pages_slowpath(cpu: int) -> int:
    """Reclaim until there is a frame; returns it, taken off the list, or 0: out of memory.

    Called outside all spinlocks.  If reclaim does not help, all CPUs are asked for what they keep;
    who has pages isolated meanwhile has let go of them then.  Source: __alloc_pages_slowpath,
    should_reclaim_retry.
    """
    if load(cpu + CPU.reclaim + RECLAIM.forbidden):
        return 0
    count_vm_event(cpu, Event.ALLOCSTALL)
    failures = 0
    while failures < MAX_RECLAIM_RETRIES:
        wakeup_kswapd(cpu)
        failures = failures + 1 if try_to_free_pages(cpu) == 0 else 0
        page = rmqueue(cpu)
        if page == 0:
            drain_all_pages(cpu)
            page = rmqueue(cpu)
        if page != 0 or load(cpu + CPU.reclaim + RECLAIM.nr_scanned) == 0:
            return page
    return 0


# kswapd


@kernel
def wakeup_kswapd(cpu: int) -> None:
    """Wake kswapd if it sleeps.

    The full order of the update, after the change of the pool, pairs with that of kswapd_op.
    """
    asleep = load(cpu + CPU.system) + SYSTEM.kswapd_asleep
    if read_once(asleep) != 0 and xchg(asleep, 0) != 0:
        futex_wake(asleep, 1)


@kernel
def zone_below(cpu: int, mark: int) -> int:
    """Tell whether the pool of a node has fewer free frames than a field of SYSTEM says."""
    system = load(cpu + CPU.system)
    below = 0
    for nid in range(load(system + SYSTEM.nr_nodes)):
        below = below | (read_once(node_zone(cpu, nid) + ZONE_FREE) < load(system + mark))
    return below


@kernel
def kswapd_op(cpu: int) -> int:
    """Do one round of kswapd: reclaim up to the high watermark, then sleep; returns 0.

    Woken at the low watermark.  If nothing can be reclaimed, or nobody wakes it, it looks again
    after a while.  Source: kswapd, balance_pgdat.
    """
    count_vm_event(cpu, Event.PAGEOUTRUN)
    freed = 1
    while freed != 0 and zone_below(cpu, SYSTEM.wmark_high):
        freed = try_to_free_pages(cpu)
        drain_pages(cpu, cpu)
        cond_resched(cpu)
    asleep = load(cpu + CPU.system) + SYSTEM.kswapd_asleep
    xchg(asleep, 1)
    if freed == 0 or zone_below(cpu, SYSTEM.wmark_low) == 0:
        cpu_sleep(cpu, asleep, 1, KSWAPD_SLEEP_NS)
    xchg(asleep, 0)
    return 0
