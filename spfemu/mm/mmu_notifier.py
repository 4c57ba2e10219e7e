# SPDX-License-Identifier: MIT
"""MMU notifiers: who keeps translations of an mm of its own is told before they become invalid.

Answers to mm/mmu_notifier.c (Linux 5.12) with the registration lock of SPF v2 (patches 22 to 26).
Whoever changes page-table entries says so before (invalidate_range_start) and when it has flushed
(invalidate_range_end).  A subscriber must hear of both or of neither, so nobody may register or
leave in between: that takes the mmap lock for writing, the locks of all rmaps, and against
speculative copies, which hold none of these, mm->mmu_notifier_lock.

A subscriber is an MMU_NOTIFIER of the segment: a secondary MMU (mm/secondary_mmu.py) with a few
translations, which drops those of the range as virt/kvm/kvm_main.c does.  Differs in that leaving
takes the same locks as registering, and so needs no SRCU.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import (
    ADDRESS_SPACE,
    ANON_VMA,
    CPU,
    MM,
    MMU_NOTIFIER,
    NOTIFIER_SHADOW,
    RWSEM,
    SYSTEM,
    VMA,
    WORD,
)
from spfemu.mm.flags import Errno
from spfemu.mm.i_mmap import vma_i_mmap_lock, vma_i_mmap_unlock, vma_mapping
from spfemu.mm.mmap_lock import mmap_write_lock, mmap_write_unlock
from spfemu.mm.percpu_rwsem import (
    percpu_down_write,
    percpu_up_write,
    rcu_sync_enter,
    rcu_sync_exit,
)
from spfemu.mm.rmap import anon_vma_lock, anon_vma_unlock
from spfemu.mm.rwsem import down_write, up_write
from spfemu.mm.slab import slab_give, slab_take
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vma_write import vmas_start_write
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, smp_store_release, store, write_once

# What those say who change entries.  Without a subscriber each is one load.


@kernel
def mmu_notifier_invalidate_range_start(cpu: int, mm: int, start: int, end: int) -> None:
    """Say that entries of [start, end) are about to change; not with a spinlock held.

    The caller holds what keeps subscribers from registering until it has said that it is done.
    """
    if read_once(mm + MM.notifier_subscriptions) != 0:
        __mmu_notifier_invalidate_range_start(cpu, mm, start, end)


@kernel
def mmu_notifier_invalidate_range_end(cpu: int, mm: int, start: int, end: int) -> None:
    """Say that they have changed: whoever looks them up from here on finds the new ones."""
    if read_once(mm + MM.notifier_subscriptions) != 0:
        __mmu_notifier_invalidate_range_end(cpu, mm)


@kernel
def mmu_notifier_invalidate_range(cpu: int, mm: int, start: int, end: int) -> None:
    """Say that entries have been cleared and CPUs flushed, before others take their place.

    For subscribers whose hardware walks the page table itself.  May be called with the page-table
    lock held.
    """
    subscription = read_once(mm + MM.notifier_subscriptions)
    while subscription != 0:
        spin_lock(cpu, subscription + MMU_NOTIFIER.lock)
        notifier_drop_range(subscription, start, end)
        spin_unlock(subscription + MMU_NOTIFIER.lock)
        subscription = read_once(subscription + MMU_NOTIFIER.next)


@slowpath
def __mmu_notifier_invalidate_range_start(cpu: int, mm: int, start: int, end: int) -> None:
    """Tell every subscriber: it drops what it has and takes up nothing until the end."""
    subscription = read_once(mm + MM.notifier_subscriptions)
    while subscription != 0:
        count_vm_event(cpu, Event.MMU_NOTIFIER_INVALIDATE)
        spin_lock(cpu, subscription + MMU_NOTIFIER.lock)
        notifier_add(subscription + MMU_NOTIFIER.nr_starts, 1)
        notifier_add(subscription + MMU_NOTIFIER.in_progress, 1)
        notifier_drop_range(subscription, start, end)
        spin_unlock(subscription + MMU_NOTIFIER.lock)
        subscription = read_once(subscription + MMU_NOTIFIER.next)


@slowpath
def __mmu_notifier_invalidate_range_end(cpu: int, mm: int) -> None:
    """Tell every subscriber; what it has looked up since the start is outdated.

    The release pairs with the acquire in notifier_fault: who sees the new number finds the new
    entries.
    """
    subscription = read_once(mm + MM.notifier_subscriptions)
    while subscription != 0:
        spin_lock(cpu, subscription + MMU_NOTIFIER.lock)
        seq = load(subscription + MMU_NOTIFIER.invalidate_seq)
        smp_store_release(subscription + MMU_NOTIFIER.invalidate_seq, seq + 1)
        notifier_add(subscription + MMU_NOTIFIER.in_progress, -1)
        notifier_add(subscription + MMU_NOTIFIER.nr_ends, 1)
        spin_unlock(subscription + MMU_NOTIFIER.lock)
        subscription = read_once(subscription + MMU_NOTIFIER.next)


@kernel
def notifier_add(word: int, change: int) -> None:
    """Change a count of a subscriber's, under its lock."""
    store(word, load(word) + change)


@kernel
def notifier_drop_range(subscription: int, start: int, end: int) -> None:
    """Forget the translations of [start, end), under the subscriber's lock."""
    for i in range(NOTIFIER_SHADOW):
        slot = subscription + MMU_NOTIFIER.shadow + i * (2 * WORD)
        if start <= load(slot) < end:
            store(slot, 0)
            store(slot + WORD, 0)


# Coming and going.


@slowpath
def mmu_notifier_register(cpu: int, mm: int) -> int:
    """Subscribe to `mm`, of which the caller has a reference; the subscription, or -ENOMEM."""
    subscription = notifier_alloc(cpu)
    if subscription == 0:
        return -Errno.ENOMEM
    store(subscription + MMU_NOTIFIER.mm, mm)
    lock_subscriptions(cpu, mm)
    store(subscription + MMU_NOTIFIER.next, load(mm + MM.notifier_subscriptions))
    write_once(mm + MM.notifier_subscriptions, subscription)
    unlock_subscriptions(cpu, mm)
    count_vm_event(cpu, Event.MMU_NOTIFIER_REGISTER)
    return subscription


@slowpath
def mmu_notifier_unregister(cpu: int, subscription: int) -> None:
    """End a subscription; the caller has a reference of the mm, unless that is gone already."""
    mm = load(subscription + MMU_NOTIFIER.mm)
    if mm != 0:
        lock_subscriptions(cpu, mm)
        notifier_unlink(mm, subscription)
        unlock_subscriptions(cpu, mm)
    notifier_free(cpu, subscription)


@slowpath
def lock_subscriptions(cpu: int, mm: int) -> None:
    """Keep everybody out who may be between a start and an end.

    The grace period of the lock passes before the mmap lock is taken.
    """
    rcu_sync_enter(cpu, mm + MM.mmu_notifier_lock)
    mmap_write_lock(cpu, mm)
    mm_take_all_locks(cpu, mm)


@slowpath
def unlock_subscriptions(cpu: int, mm: int) -> None:
    """Undo lock_subscriptions."""
    mm_drop_all_locks(cpu, mm)
    mmap_write_unlock(cpu, mm)
    rcu_sync_exit(mm + MM.mmu_notifier_lock)


@slowpath
def mmu_notifier_release(cpu: int, mm: int) -> None:
    """Let the subscribers of an mm without users go; their owners end the subscriptions."""
    subscription = load(mm + MM.notifier_subscriptions)
    while subscription != 0:
        following = load(subscription + MMU_NOTIFIER.next)
        spin_lock(cpu, subscription + MMU_NOTIFIER.lock)
        notifier_drop_range(subscription, 0, load(mm + MM.task_size))
        store(subscription + MMU_NOTIFIER.mm, 0)
        store(subscription + MMU_NOTIFIER.next, 0)
        spin_unlock(subscription + MMU_NOTIFIER.lock)
        subscription = following
    write_once(mm + MM.notifier_subscriptions, 0)


@kernel
def notifier_unlink(mm: int, subscription: int) -> None:
    """Take a subscription off the mm's list; nobody is walking it."""
    link = mm + MM.notifier_subscriptions
    while load(link) != subscription:
        link = load(link) + MMU_NOTIFIER.next
    write_once(link, load(subscription + MMU_NOTIFIER.next))


@slowpath
def notifier_alloc(cpu: int) -> int:
    """Take a free MMU_NOTIFIER, all 0 but its marks; 0 if there is none."""
    subscription = slab_take(
        cpu, SYSTEM.notifier_slab_lock, SYSTEM.notifier_free, MMU_NOTIFIER.next
    )
    if subscription != 0:
        for i in range(MMU_NOTIFIER.SIZE // WORD):
            store(subscription + i * WORD, 0)
        store(subscription + MMU_NOTIFIER.in_use, 1)
    return subscription


@slowpath
def notifier_free(cpu: int, subscription: int) -> None:
    """Give back an MMU_NOTIFIER that no list has."""
    for i in range(MMU_NOTIFIER.SIZE // WORD):
        store(subscription + i * WORD, 0)
    slab_give(
        cpu,
        SYSTEM.notifier_slab_lock,
        SYSTEM.notifier_free,
        MMU_NOTIFIER.next,
        subscription,
    )


@slowpath
def mm_take_all_locks(cpu: int, mm: int) -> None:
    """Keep everybody out who might change entries; the mmap lock is held for writing.

    One CPU at a time does this to rmaps, since processes share them.  Source: mm/mmap.c, as changed
    by patch 24 of SPF v2, and by Linux 6.4 for the locks of VMAs.
    """
    percpu_down_write(cpu, mm + MM.mmu_notifier_lock)
    vma = load(mm + MM.mmap)
    if vma != 0:
        vmas_start_write(cpu, vma, load(mm + MM.task_size))
    down_write(cpu, load(cpu + CPU.system) + SYSTEM.mm_all_locks)
    while vma != 0:
        if i_mmap_is_mine(cpu, vma) == 0:
            vma_i_mmap_lock(cpu, vma)
        vma = load(vma + VMA.vm_next)
    # spinlocks after those for which one may sleep
    vma = load(mm + MM.mmap)
    while vma != 0:
        anon_vma = load(vma + VMA.anon_vma)
        if anon_vma != 0 and anon_vma_is_mine(cpu, anon_vma) == 0:
            anon_vma_lock(cpu, anon_vma)
        vma = load(vma + VMA.vm_next)


@kernel
def i_mmap_is_mine(cpu: int, vma: int) -> int:
    """Tell whether this CPU has locked the file of `vma`, for an earlier VMA of it."""
    mapping = vma_mapping(vma)
    if mapping == 0:
        return 0
    owner = read_once(mapping + ADDRESS_SPACE.i_mmap_rwsem + RWSEM.owner)
    return owner == load(cpu + CPU.id) + 1


@kernel
def anon_vma_is_mine(cpu: int, anon_vma: int) -> int:
    """Tell whether this CPU has locked the root of `anon_vma`, for an earlier VMA of it."""
    return read_once(load(anon_vma + ANON_VMA.root) + ANON_VMA.lock) == load(cpu + CPU.id) + 1


@slowpath
def mm_drop_all_locks(cpu: int, mm: int) -> None:
    """Undo mm_take_all_locks, but for the locks of VMAs, which go with the mmap lock."""
    vma = load(mm + MM.mmap)
    while vma != 0:
        anon_vma = load(vma + VMA.anon_vma)
        if anon_vma != 0 and anon_vma_is_mine(cpu, anon_vma):
            anon_vma_unlock(anon_vma)
        if i_mmap_is_mine(cpu, vma):
            vma_i_mmap_unlock(cpu, vma)
        vma = load(vma + VMA.vm_next)
    up_write(cpu, load(cpu + CPU.system) + SYSTEM.mm_all_locks)
    percpu_up_write(cpu, mm + MM.mmu_notifier_lock)
