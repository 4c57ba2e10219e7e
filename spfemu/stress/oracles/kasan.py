# SPDX-License-Identifier: MIT
"""Use after free, seen at the touch (as the kernel's KASAN sees it, Linux 5.12, mm/kasan).

Frames and objects of slabs have a SHADOW.  What is given back to the allocator is poisoned there,
with who did it and when, until it is handed out again; every access to memory looks at the shadow
of its address.  An object that waits for a grace period is not poisoned: it is given back at the
end of that, and readers may touch it until then.  The lock of a page table is in its struct page,
which is always there; it is looked at as a part of the table.

Who may touch what is free:

- the allocators, the words that link free objects;
- a reclaimer or khugepaged, `mm_users` of any mm_struct (`mmget_not_zero`);
- who looks for the anon_vma of a page: its root and lock, until both are known to be of the page
  (`page_lock_anon_vma_read`: SLAB_TYPESAFE_BY_RCU);
- with `vma_slab_typesafe`, a fault that looks a VMA up, until it has a reference
  (`lock_vma_under_rcu`).  From there on the VMA must stay the same until it is unlocked, which is
  seen by its generation, under every protocol that locks VMAs;
- the experiment `spf-counted`, its count that means nothing.

A reuse hides what it overtakes: an access to an object that is somebody else's by now is not seen.
So there is a QUARANTINE (mm/kasan/quarantine.c): in a round that asks for it (see
`spfemu.stress.quarantine`), a CPU keeps what it frees, and gives the oldest back at the end of an
operation.  Whoever finds nothing to allocate gives back all of its own, a drain everybody's.

- Kept are frames, and objects of the slabs that are drained when they are used up, and chains.
  Of mm_structs, subscribers and contexts there are too few; a huge frame is free with the last of
  its parts only.
- SLAB_TYPESAFE_BY_RCU: the kernel neither poisons nor keeps such objects, for it cannot tell who
  may touch them.  Here that is known (above), so they are poisoned and kept as others are.
"""

from enum import IntFlag

from spfemu.kernel import around, kernel, proceed, slowpath
from spfemu.layout import (
    ADDRESS_SPACE,
    ANON_VMA,
    ANON_VMA_CHAIN,
    CPU,
    FILE,
    MM,
    MMU_NOTIFIER,
    PAGE,
    PAGE_SHIFT,
    QUARANTINE,
    QUARANTINE_ENTRIES,
    QUARANTINE_WORDS,
    SHADOW,
    STRESS,
    STRESS_CPU,
    SYSTEM,
    USERFAULTFD_CTX,
    VMA,
    WORD,
)
from spfemu.mm.flags import HPAGE_PMD_NR, PageKind, Pg
from spfemu.mm.page_alloc import PAGE_STRUCT_SHIFT
from spfemu.mm.vma_write import vma_slab_typesafe
from spfemu.primitives import load, read_cycles, read_once, store, this_cpu, write_once
from spfemu.stress.promises import Promise
from spfemu.stress.violation import stress_violation


class Exempt(IntFlag):
    """Kinds of objects; the bits of STRESS_CPU.exempt."""

    MM = 1
    ANON_VMA = 2
    VMA = 4
    OTHER = 8


EXEMPT_ALL = int(Exempt.MM | Exempt.ANON_VMA | Exempt.VMA | Exempt.OTHER)


# Looking


@around
def trace_access(site: int, address: int) -> None:
    """Look whether `address` may be touched."""
    cpu = this_cpu()
    if cpu != 0:
        own = load(cpu + CPU.stress)
        store(own + STRESS_CPU.site, site + 1)
        if address >= load(load(cpu + CPU.system) + SYSTEM.mms):
            kasan_check(cpu, own, address)
    proceed(site, address)


@kernel
def kasan_check(cpu: int, own: int, address: int) -> None:
    """Report an access to what is free."""
    shadow, kind = kasan_shadow(cpu, own, address)
    if shadow != 0 and read_once(shadow + SHADOW.freed_by) != 0:
        if (kind & load(own + STRESS_CPU.exempt)) == 0:
            stress_violation(Promise.USE_AFTER_FREE, address, shadow)


@kernel
def kasan_shadow(cpu: int, own: int, address: int) -> tuple[int, int]:
    """Return the SHADOW of what is at `address`, and its kind; (0, 0) if it has none.

    Who reads it has the address by the same dependency that orders the object's own words.
    """
    system = load(cpu + CPU.system)
    if address < load(system + SYSTEM.vmemmap):
        shadow, kind = kasan_slab_shadow(system, load(own + STRESS_CPU.stress), address)
        return shadow, kind
    index = (address - load(cpu + CPU.frames)) >> PAGE_SHIFT
    if address < load(cpu + CPU.frames):
        offset = address - load(cpu + CPU.vmemmap)
        if offset & (PAGE.SIZE - 1) != PAGE.ptl:
            return 0, 0
        index = offset >> PAGE_STRUCT_SHIFT
    if index >= load(system + SYSTEM.nr_frames):
        return 0, 0
    shadow = load(load(own + STRESS_CPU.stress) + STRESS.frame_shadow)
    return shadow + index * SHADOW.SIZE, Exempt.OTHER


@kernel
def kasan_slab_shadow(system: int, stress: int, address: int) -> tuple[int, int]:
    """Return the SHADOW of the object of a slab at `address`, and its kind; (0, 0) if it has none.

    From the highest area to the lowest; what lies behind one has no index in it.
    """
    offset = address - load(system + SYSTEM.uffds)
    if offset >= 0:
        index = offset // USERFAULTFD_CTX.SIZE
        shadow = shadow_at(stress + STRESS.uffd_shadow, index, system + SYSTEM.nr_uffds)
        return shadow, Exempt.OTHER
    offset = address - load(system + SYSTEM.vmas)
    if offset >= 0:
        index = offset // VMA.SIZE
        shadow = shadow_at(stress + STRESS.vma_shadow, index, system + SYSTEM.nr_vmas)
        return shadow, Exempt.VMA
    offset = address - load(system + SYSTEM.notifiers)
    if offset >= 0:
        index = offset // MMU_NOTIFIER.SIZE
        shadow = shadow_at(stress + STRESS.notifier_shadow, index, system + SYSTEM.nr_notifiers)
        return shadow, Exempt.OTHER
    offset = address - load(system + SYSTEM.mappings)
    if offset >= 0:
        index = offset // ADDRESS_SPACE.SIZE
        shadow = shadow_at(stress + STRESS.mapping_shadow, index, system + SYSTEM.nr_files)
        return shadow, Exempt.OTHER
    offset = address - load(system + SYSTEM.files)
    if offset >= 0:
        index = offset // FILE.SIZE
        shadow = shadow_at(stress + STRESS.file_shadow, index, system + SYSTEM.nr_files)
        return shadow, Exempt.OTHER
    offset = address - load(system + SYSTEM.avcs)
    if offset >= 0:
        index = offset // ANON_VMA_CHAIN.SIZE
        shadow = shadow_at(stress + STRESS.avc_shadow, index, system + SYSTEM.nr_avcs)
        return shadow, Exempt.OTHER
    offset = address - load(system + SYSTEM.anon_vmas)
    if offset >= 0:
        index = offset // ANON_VMA.SIZE
        shadow = shadow_at(stress + STRESS.anon_vma_shadow, index, system + SYSTEM.nr_anon_vmas)
        return shadow, Exempt.ANON_VMA
    index = (address - load(system + SYSTEM.mms)) // MM.SIZE
    if index >= load(system + SYSTEM.nr_mms) + load(system + SYSTEM.nr_spare_mms):
        return 0, 0
    return load(stress + STRESS.mm_shadow) + index * SHADOW.SIZE, Exempt.MM


@kernel
def shadow_at(first: int, index: int, count: int) -> int:
    """Address of SHADOW number `index`, or 0; `first` and `count` are the addresses of words."""
    return load(first) + index * SHADOW.SIZE if index < load(count) else 0


# Freeing and handing out


@slowpath
def kasan_poison(address: int) -> None:
    """Say that nobody may touch what is at `address`; it must not be free yet.

    The allocator's lock, or its use on one CPU only, orders this before `kasan_unpoison`.
    """
    cpu = this_cpu()
    own = load(cpu + CPU.stress)
    shadow, _kind = kasan_shadow(cpu, own, address)
    if load(shadow + SHADOW.freed_by) != 0:
        stress_violation(Promise.USE_AFTER_FREE, address, shadow)
    store(shadow + SHADOW.time, read_cycles())
    store(shadow + SHADOW.site, load(own + STRESS_CPU.site))
    store(shadow + SHADOW.nr_frees, load(shadow + SHADOW.nr_frees) + 1)
    write_once(shadow + SHADOW.freed_by, cpu)


@kernel
def kasan_unpoison(address: int) -> None:
    """Let everybody touch what is at `address`, unless that is 0."""
    if address != 0:
        cpu = this_cpu()
        shadow, _kind = kasan_shadow(cpu, load(cpu + CPU.stress), address)
        write_once(shadow + SHADOW.freed_by, 0)


@kernel
def kasan_exempt(cpu: int, kinds: int) -> int:
    """Let this CPU touch free objects of `kinds` besides; returns what `kasan_restore` takes."""
    own = load(cpu + CPU.stress)
    old = load(own + STRESS_CPU.exempt)
    store(own + STRESS_CPU.exempt, old | kinds)
    return old


@kernel
def kasan_restore(cpu: int, old: int) -> None:
    """End that."""
    store(load(cpu + CPU.stress) + STRESS_CPU.exempt, old)


# Keeping from reuse


@slowpath
def quarantine_put(cpu: int, obj: int, cache: int, lock: int, free: int, link: int) -> int:
    """Poison what is freed; returns 1 if it is kept from reuse.  The rest is as of QUARANTINE."""
    own = load(cpu + CPU.stress)
    if load(own + STRESS_CPU.releases):
        return 0
    queue = own + STRESS_CPU.kept_objects
    address = obj
    if lock == 0:
        queue = own + STRESS_CPU.kept_frames
        address = kasan_frame(cpu, obj)
    kasan_poison(address)
    nr = load(queue + QUARANTINE.nr)
    if nr >= load(load(own + STRESS_CPU.stress) + STRESS.quarantine):
        return 0
    if free == SYSTEM.mm_free or free == SYSTEM.notifier_free or free == SYSTEM.uffd_free:
        return 0
    entry = quarantine_entry(queue, load(queue + QUARANTINE.first) + nr)
    store(entry, obj)
    store(entry + WORD, cache)
    store(entry + 2 * WORD, lock)
    store(entry + 3 * WORD, free)
    store(entry + 4 * WORD, link)
    store(queue + QUARANTINE.nr, nr + 1)
    return 1


@kernel
def quarantine_entry(queue: int, number: int) -> int:
    """Address of an entry of a QUARANTINE, counted from the first in the ring."""
    index = number % QUARANTINE_ENTRIES
    return queue + QUARANTINE.entries + index * QUARANTINE_WORDS * WORD


@slowpath
def quarantine_reduce(cpu: int, target: int, most: int) -> None:
    """Give back the oldest that `target` keeps, this CPU or one that is frozen, down to `most`."""
    own = load(cpu + CPU.stress)
    store(own + STRESS_CPU.releases, 1)
    quarantine_shrink(cpu, load(target + CPU.stress) + STRESS_CPU.kept_objects, most)
    quarantine_shrink(cpu, load(target + CPU.stress) + STRESS_CPU.kept_frames, most)
    store(own + STRESS_CPU.releases, 0)


@slowpath
def quarantine_shrink(cpu: int, queue: int, most: int) -> None:
    """Do so with one of its queues."""
    while load(queue + QUARANTINE.nr) > most:
        first = load(queue + QUARANTINE.first)
        entry = quarantine_entry(queue, first)
        obj, cache, lock = load(entry), load(entry + WORD), load(entry + 2 * WORD)
        free, link = load(entry + 3 * WORD), load(entry + 4 * WORD)
        store(queue + QUARANTINE.first, (first + 1) % QUARANTINE_ENTRIES)
        store(queue + QUARANTINE.nr, load(queue + QUARANTINE.nr) - 1)
        if lock == 0:
            free_page(cpu, obj)
        elif cache == 0:
            slab_give(cpu, lock, free, link, obj)
        else:
            slab_cache_give(cpu, cache, lock, free, link, obj)


@kernel
def quarantine_empty(cpu: int) -> int:
    """Give back all that this CPU keeps; returns 1 if it kept anything."""
    own = load(cpu + CPU.stress)
    kept = load(own + STRESS_CPU.kept_objects + QUARANTINE.nr)
    if kept + load(own + STRESS_CPU.kept_frames + QUARANTINE.nr) == 0:
        return 0
    quarantine_reduce(cpu, cpu, 0)
    return 1


@around
def cond_resched(cpu: int) -> None:
    """Give back the oldest, so that there is room for others."""
    proceed(cpu)
    own = load(cpu + CPU.stress)
    quarantine_reduce(cpu, cpu, load(load(own + STRESS_CPU.stress) + STRESS.quarantine) >> 1)


@around
def rcu_barrier(cpu: int) -> None:
    """Give back all: who waits for this wants what was freed."""
    proceed(cpu)
    quarantine_empty(cpu)


@around
def drain_lists(cpu: int, target: int) -> None:
    """Give back what `target` keeps, this CPU or one that is frozen, as what is on its lists."""
    quarantine_reduce(cpu, target, 0)
    proceed(cpu, target)


# Frames


@kernel
def kasan_frame(cpu: int, page: int) -> int:
    """Address of the frame of `page`, without an access that its site would be noted of."""
    index = (page - load(cpu + CPU.vmemmap)) >> PAGE_STRUCT_SHIFT
    return load(cpu + CPU.frames) + (index << PAGE_SHIFT)


@around
def rmqueue(cpu: int) -> int:
    """Hand out a frame."""
    page: int = proceed(cpu)
    if page == 0 and quarantine_empty(cpu):
        page = proceed(cpu)
    if page != 0:
        kasan_unpoison(kasan_frame(cpu, page))
    return page


@around
def free_page(cpu: int, page: int) -> None:
    """Take back a frame, unless it is a part of a huge one."""
    if (load(page + PAGE.flags) & Pg.COMPOUND) == 0:
        if quarantine_put(cpu, page, 0, 0, 0, 0):
            store(page + PAGE.flags, PageKind.FREE)
            return
    proceed(cpu, page)


@around
def alloc_huge_page(cpu: int) -> int:
    """Hand out all frames of a huge one."""
    head: int = proceed(cpu)
    if head != 0:
        for i in range(HPAGE_PMD_NR):
            kasan_unpoison(kasan_frame(cpu, head + i * PAGE.SIZE))
    return head


@around
def free_huge_subpage(cpu: int, page: int) -> None:
    """Take back one of them."""
    kasan_poison(kasan_frame(cpu, page))
    proceed(cpu, page)


# Slabs


@around
def slab_take(cpu: int, lock: int, free: int, link: int) -> int:
    """Hand out an object."""
    old = kasan_exempt(cpu, EXEMPT_ALL)
    slot: int = proceed(cpu, lock, free, link)
    if slot == 0 and quarantine_empty(cpu):
        slot = proceed(cpu, lock, free, link)
    kasan_restore(cpu, old)
    kasan_unpoison(slot)
    return slot


@around
def slab_cache_take(cpu: int, cache: int, lock: int, free: int, link: int) -> int:
    """Hand out an object."""
    old = kasan_exempt(cpu, EXEMPT_ALL)
    slot: int = proceed(cpu, cache, lock, free, link)
    kasan_restore(cpu, old)
    kasan_unpoison(slot)
    return slot


@around
def slab_give(cpu: int, lock: int, free: int, link: int, slot: int) -> None:
    """Take back an object."""
    if quarantine_put(cpu, slot, 0, lock, free, link):
        return
    old = kasan_exempt(cpu, EXEMPT_ALL)
    proceed(cpu, lock, free, link, slot)
    kasan_restore(cpu, old)


@around
def slab_cache_give(cpu: int, cache: int, lock: int, free: int, link: int, slot: int) -> None:
    """Take back an object."""
    if quarantine_put(cpu, slot, cache, lock, free, link):
        return
    old = kasan_exempt(cpu, EXEMPT_ALL)
    proceed(cpu, cache, lock, free, link, slot)
    kasan_restore(cpu, old)


@around
def slab_refill(cpu: int, cache: int, lock: int, free: int, link: int) -> None:
    """Move free objects."""
    old = kasan_exempt(cpu, EXEMPT_ALL)
    proceed(cpu, cache, lock, free, link)
    kasan_restore(cpu, old)


# Who may touch what is free


@around
def mmget_not_zero(mm: int) -> int:
    """Look at the users of an mm that may be gone."""
    cpu = this_cpu()
    old = kasan_exempt(cpu, Exempt.MM)
    result: int = proceed(mm)
    kasan_restore(cpu, old)
    return result


@around
def page_lock_anon_vma_read(cpu: int, page: int) -> int:
    """Lock an anon_vma that may be gone."""
    old = kasan_exempt(cpu, Exempt.ANON_VMA)
    anon_vma: int = proceed(cpu, page)
    kasan_restore(cpu, old)
    return anon_vma


@around
def count_fault_end(vma: int) -> None:
    """Count in a VMA that may be gone."""
    cpu = this_cpu()
    old = kasan_exempt(cpu, Exempt.VMA)
    proceed(vma)
    kasan_restore(cpu, old)


@around
def lock_vma_under_rcu(cpu: int, mm: int, address: int) -> int:
    """Look up VMAs that may be gone; note which one was locked."""
    old = kasan_exempt(cpu, Exempt.VMA if vma_slab_typesafe() else 0)
    vma: int = proceed(cpu, mm, address)
    kasan_restore(cpu, old)
    own = load(cpu + CPU.stress)
    store(own + STRESS_CPU.vma, vma)
    if vma != 0:
        store(own + STRESS_CPU.vma_generation, load(vma + VMA.generation))
    return vma


@around
def vma_end_read(cpu: int, vma: int) -> None:
    """See that the VMA is still the one that was locked."""
    own = load(cpu + CPU.stress)
    if vma == load(own + STRESS_CPU.vma):
        store(own + STRESS_CPU.vma, 0)
        if load(vma + VMA.generation) != load(own + STRESS_CPU.vma_generation):
            shadow, _kind = kasan_shadow(cpu, own, vma)
            stress_violation(Promise.USE_AFTER_FREE, vma, shadow)
    proceed(cpu, vma)
