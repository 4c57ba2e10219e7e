# SPDX-License-Identifier: MIT
"""The swap cache: pages in memory that have a slot of the swap area (Linux 6.1, mm/swap_state.c).

The cache is in the slots, under the lock of their cluster, and holds a reference to each page.  A
page enters and leaves it under its page lock, with PAGE.private naming its entry meanwhile.

A page that nothing but the cache knows would be lost: no page table leads to it.  So whoever ends
the last use of one takes it out (`free_swap_cache`); if the page is locked just then, its holder
does when it lets go (`unlock_swap_page`).
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE, PAGE_SHIFT, SWAP_CLUSTER, SWAP_SLOT, SYSTEM
from spfemu.mm.flags import Errno, Pg
from spfemu.mm.page_alloc import free_page, get_page, page_address, put_page
from spfemu.mm.page_lock import trylock_page, unlock_page
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.swapfile import (
    get_swap_page,
    swap_cluster,
    swap_count,
    swap_free,
    swap_slot,
    swap_slot_free_if_unused,
)
from spfemu.mm.swapops import swp_offset
from spfemu.primitives import (
    atomic_fetch_and,
    atomic_fetch_or,
    cmpxchg,
    copy_page,
    load,
    read_once,
    store,
    write_once,
)

CACHED = int(Pg.SWAPCACHE)
CACHED_AND_DIRTY = int(Pg.SWAPCACHE | Pg.DIRTY)


@kernel
def page_swapcache(page: int) -> int:
    """Tell whether the page is in the swap cache."""
    return (read_once(page + PAGE.flags) & Pg.SWAPCACHE) != 0


@kernel
def add_to_swap(cpu: int, page: int) -> int:
    """Give a locked page a slot; returns 1, or 0 if there is none.  What is in the slot is old."""
    get_page(page)
    entry = get_swap_page(cpu, page)
    if entry == 0:
        put_page(cpu, page)
        return 0
    store(page + PAGE.private, entry)
    atomic_fetch_or(page + PAGE.flags, CACHED_AND_DIRTY)
    return 1


@kernel
def swap_cache_add(cpu: int, entry: int, page: int) -> int:
    """Put a fresh locked page into the cache for `entry`, to be read.

    Returns 0; -ENOENT if no pte holds the entry any more; -EEXIST if there is another page.
    Source: swapcache_prepare and add_to_swap_cache.
    """
    cluster = swap_cluster(cpu, entry)
    slot = swap_slot(cpu, entry)
    error = -Errno.EEXIST
    spin_lock(cpu, cluster + SWAP_CLUSTER.lock)
    if load(slot + SWAP_SLOT.page) == 0:
        error = -Errno.ENOENT
        if load(slot + SWAP_SLOT.count) != 0:
            error = 0
            get_page(page)
            store(page + PAGE.private, entry)
            atomic_fetch_or(page + PAGE.flags, CACHED)
            write_once(slot + SWAP_SLOT.page, page)
    spin_unlock(cluster + SWAP_CLUSTER.lock)
    return error


@kernel
def swap_slot_cached(cpu: int, entry: int) -> int:
    """Tell whether the cache has a page for `entry`; it may change at any time."""
    return read_once(swap_slot(cpu, entry) + SWAP_SLOT.page) != 0


@kernel
def lookup_swap_cache(cpu: int, entry: int) -> int:
    """Return the page that the cache has for `entry`, with a reference, or 0."""
    if swap_slot_cached(cpu, entry) == 0:
        return 0
    slot = swap_slot(cpu, entry)
    cluster = swap_cluster(cpu, entry)
    spin_lock(cpu, cluster + SWAP_CLUSTER.lock)
    page = load(slot + SWAP_SLOT.page)
    if page != 0:
        get_page(page)
    spin_unlock(cluster + SWAP_CLUSTER.lock)
    return page


@slowpath
def try_to_free_swap(cpu: int, page: int) -> int:
    """Take a locked page out of the cache if no pte holds its entry; returns 1 if it was taken.

    The page is dirty then: it has no copy.  The caller has a reference of its own.
    """
    if page_swapcache(page) == 0:
        return 0
    entry = load(page + PAGE.private)
    cluster = swap_cluster(cpu, entry)
    slot = swap_slot(cpu, entry)
    spin_lock(cpu, cluster + SWAP_CLUSTER.lock)
    unused = load(slot + SWAP_SLOT.count) == 0
    if unused:
        atomic_fetch_or(page + PAGE.flags, Pg.DIRTY)
        delete_from_swap_cache(cluster, slot, page)
    spin_unlock(cluster + SWAP_CLUSTER.lock)
    if unused:
        put_page(cpu, page)
    return unused


@kernel
def delete_from_swap_cache(cluster: int, slot: int, page: int) -> None:
    """Take a locked page out of the cache, whose reference passes to the caller.

    Needs the cluster's lock.
    """
    atomic_fetch_and(page + PAGE.flags, ~CACHED)
    write_once(slot + SWAP_SLOT.page, 0)
    swap_slot_free_if_unused(cluster, slot)


@kernel
def remove_mapping(cpu: int, page: int) -> int:
    """Free a locked page whose only users are the cache and the caller; returns 1 if it is gone.

    With the count frozen at 0 under the cluster's lock, nobody finds the page any more.  Source:
    __remove_mapping.
    """
    entry = load(page + PAGE.private)
    cluster = swap_cluster(cpu, entry)
    spin_lock(cpu, cluster + SWAP_CLUSTER.lock)
    # full order: what others did with the page before they let go of it comes before
    gone = 1 if cmpxchg(page + PAGE.refcount, 2, 0) == 2 else 0
    if gone:
        delete_from_swap_cache(cluster, swap_slot(cpu, entry), page)
    spin_unlock(cluster + SWAP_CLUSTER.lock)
    if gone:
        free_page(cpu, page)
    return gone


# The last use of a page in the cache


@kernel
def swap_page_unused(cpu: int, page: int) -> int:
    """Tell whether the cache is all that knows the page, but for references to it."""
    if page_swapcache(page) == 0 or read_once(page + PAGE.mapcount) != 0:
        return 0
    return swap_count(cpu, load(page + PAGE.private)) == 0


@kernel
def free_swap_cache(cpu: int, page: int) -> None:
    """Take a page out of the cache if nothing else knows it; the caller has a reference.

    Who finds it locked leaves it to the holder: the order of the two updates of the flags shows the
    holder, when it has unlocked the page, that it is in no other use any more.
    """
    while swap_page_unused(cpu, page):
        if trylock_page(page) == 0:
            return
        try_to_free_swap(cpu, page)
        unlock_page(page)


@kernel
def unlock_swap_page(cpu: int, page: int) -> None:
    """Unlock a page that may be in the cache; the caller has a reference."""
    unlock_page(page)
    free_swap_cache(cpu, page)


@slowpath
def free_swap_and_cache(cpu: int, entry: int) -> None:
    """Drop the entry of a pte that is being cleared, with the page if that was its last use."""
    if swap_free(cpu, entry) == 0:
        page = lookup_swap_cache(cpu, entry)
        if page != 0:
            free_swap_cache(cpu, page)
            put_page(cpu, page)


# What is in a slot (mm/page_io.c)


@kernel
def swap_slot_address(cpu: int, entry: int) -> int:
    """Address of the contents of a slot."""
    return load(load(cpu + CPU.system) + SYSTEM.swap_area) + (swp_offset(entry) << PAGE_SHIFT)


@kernel
def swap_writepage(cpu: int, page: int) -> None:
    """Copy a locked page that nobody maps to its slot."""
    atomic_fetch_and(page + PAGE.flags, ~Pg.DIRTY)
    copy_page(swap_slot_address(cpu, load(page + PAGE.private)), page_address(cpu, page))


@kernel
def swap_readpage(cpu: int, page: int) -> None:
    """Fill a locked page in the cache from its slot."""
    copy_page(page_address(cpu, page), swap_slot_address(cpu, load(page + PAGE.private)))
