# SPDX-License-Identifier: MIT
"""Free slots of one kind of object: a list for all CPUs, and a cache of some for each CPU.

As much of the slab allocator (mm/slub.c) as fixed numbers of objects need.  A kind is named by the
offsets in SYSTEM of its lock and of the head of its list, and by that of the word that links its
free slots; its cache by the offset in a CPU block of the list, behind which its length stands.
"""

from typing import TYPE_CHECKING

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, WORD
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import load, store

if TYPE_CHECKING:  # the engines resolve calls by name: importing this would be circular
    from spfemu.mm.drain import drain_all_pages

CACHE_BATCH = 16
"""Free slots that move between a CPU's cache and the list of all at once."""
CACHE_MAX = 2 * CACHE_BATCH
"""Most free slots in a CPU's cache."""


@slowpath
def slab_take(cpu: int, lock: int, free: int, link: int) -> int:
    """Take a slot from the list of all CPUs; 0 if there is none."""
    system = load(cpu + CPU.system)
    spin_lock(cpu, system + lock)
    slot = load(system + free)
    if slot != 0:
        store(system + free, load(slot + link))
    spin_unlock(system + lock)
    return slot


@slowpath
def slab_give(cpu: int, lock: int, free: int, link: int, slot: int) -> None:
    """Put a slot that nobody refers to on the list of all CPUs."""
    system = load(cpu + CPU.system)
    spin_lock(cpu, system + lock)
    store(slot + link, load(system + free))
    store(system + free, slot)
    spin_unlock(system + lock)


@kernel
def slab_cache_take(cpu: int, cache: int, lock: int, free: int, link: int) -> int:
    """Take a slot from this CPU's cache, filled if it is empty; 0 if all slots are in use.

    Not under a spinlock.
    """
    if load(cpu + cache + WORD) == 0:
        slab_refill(cpu, cache, lock, free, link)
        if load(cpu + cache + WORD) == 0:
            drain_all_pages(cpu)
            slab_refill(cpu, cache, lock, free, link)
    slot = load(cpu + cache)
    if slot == 0:
        return 0
    store(cpu + cache, load(slot + link))
    store(cpu + cache + WORD, load(cpu + cache + WORD) - 1)
    return slot


@kernel
def slab_cache_give(cpu: int, cache: int, lock: int, free: int, link: int, slot: int) -> None:
    """Put a slot that nobody refers to into this CPU's cache."""
    if load(cpu + cache + WORD) >= CACHE_MAX:
        slab_drain(cpu, cpu + cache, lock, free, link, CACHE_BATCH)
    store(slot + link, load(cpu + cache))
    store(cpu + cache, slot)
    store(cpu + cache + WORD, load(cpu + cache + WORD) + 1)


@slowpath
def slab_refill(cpu: int, cache: int, lock: int, free: int, link: int) -> None:
    """Move up to a batch of slots from the list of all CPUs into this CPU's cache."""
    system = load(cpu + CPU.system)
    local = load(cpu + cache)
    count = load(cpu + cache + WORD)
    last = count + CACHE_BATCH
    spin_lock(cpu, system + lock)
    slot = load(system + free)
    while slot != 0 and count < last:
        following = load(slot + link)
        store(slot + link, local)
        local = slot
        count += 1
        slot = following
    store(system + free, slot)
    spin_unlock(system + lock)
    store(cpu + cache, local)
    store(cpu + cache + WORD, count)


@slowpath
def slab_drain(cpu: int, cache: int, lock: int, free: int, link: int, count: int) -> None:
    """Move `count` slots from the cache at an address to the list of all CPUs."""
    system = load(cpu + CPU.system)
    slot = load(cache)
    spin_lock(cpu, system + lock)
    head = load(system + free)
    for _ in range(count):
        following = load(slot + link)
        store(slot + link, head)
        head = slot
        slot = following
    store(system + free, head)
    spin_unlock(system + lock)
    store(cache, slot)
    store(cache + WORD, load(cache + WORD) - count)
