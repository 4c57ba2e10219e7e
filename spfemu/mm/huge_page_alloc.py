# SPDX-License-Identifier: MIT
"""Huge frames: taken as a whole from a reserve, given back frame by frame.

Each of the 512 frames has references and mappings of its own, also while one pmd entry maps them
all: so an entry is split without touching a struct page.  The huge frame is free again when the
last of its frames is.  Differs from compound pages (Linux 5.12) in that, and in that the reserve is
fixed (Geometry.nr_huge) where the buddy allocator would put frames together.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, HUGE_PAGE, PAGE, SYSTEM
from spfemu.mm.flags import HPAGE_PMD_NR, PageKind, Pg
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_and,
    load,
    read_once,
    smp_load_acquire,
    store,
    write_once,
)

HUGE_STRUCTS_SHIFT = 15
"""The structs of a huge frame's frames take up 1 << 15 bytes."""


@slowpath
def alloc_huge_page(cpu: int) -> int:
    """Take a huge frame, one reference to each of its frames; the PAGE of the first, or 0."""
    system = load(cpu + CPU.system)
    spin_lock(cpu, system + SYSTEM.huge_lock)
    huge = load(system + SYSTEM.huge_free)
    if huge != 0:
        write_once(system + SYSTEM.huge_free, load(huge + HUGE_PAGE.next))
    spin_unlock(system + SYSTEM.huge_lock)
    if huge == 0:
        return 0
    index = (huge - load(system + SYSTEM.huge_pages)) // HUGE_PAGE.SIZE
    head = load(system + SYSTEM.huge_vmemmap) + (index << HUGE_STRUCTS_SHIFT)
    store(huge + HUGE_PAGE.live, HPAGE_PMD_NR)
    for i in range(HPAGE_PMD_NR):
        page = head + i * PAGE.SIZE
        store(page + PAGE.flags, PageKind.ANON | Pg.COMPOUND)
        store(page + PAGE.refcount, 1)
    return head


@slowpath
def free_huge_page(cpu: int, head: int) -> None:
    """Give back a huge frame that was never mapped."""
    for i in range(HPAGE_PMD_NR):
        page = head + i * PAGE.SIZE
        store(page + PAGE.refcount, 0)
        free_huge_subpage(cpu, page)


@slowpath
def free_huge_subpage(cpu: int, page: int) -> None:
    """Give back one frame of a huge frame, and that if it was the last.

    The full order of the decrement puts what was done with the frames before their reuse.
    """
    system = load(cpu + CPU.system)
    store(page + PAGE.flags, PageKind.FREE | Pg.COMPOUND)
    index = (page - load(system + SYSTEM.huge_vmemmap)) >> HUGE_STRUCTS_SHIFT
    huge = load(system + SYSTEM.huge_pages) + index * HUGE_PAGE.SIZE
    if atomic_fetch_add(huge + HUGE_PAGE.live, -1) == 1:
        spin_lock(cpu, system + SYSTEM.huge_lock)
        store(huge + HUGE_PAGE.next, load(system + SYSTEM.huge_free))
        write_once(system + SYSTEM.huge_free, huge)
        spin_unlock(system + SYSTEM.huge_lock)


@kernel
def huge_page_is_mine(head: int) -> int:
    """Tell whether each frame has one reference: nobody else maps or uses a part of it.

    The acquires pair with the update in put_page, as in wp_can_reuse.
    """
    for i in range(HPAGE_PMD_NR):
        if smp_load_acquire(head + i * PAGE.SIZE + PAGE.refcount) != 1:
            return 0
    return 1


@kernel
def huge_page_marked_shared(head: int) -> int:
    """Tell whether a fork has shared any part since that was last one process's own."""
    for i in range(HPAGE_PMD_NR):
        if read_once(head + i * PAGE.SIZE + PAGE.flags) & Pg.ANON_SHARED:
            return 1
    return 0


@kernel
def huge_page_unshare(head: int) -> None:
    """Take back all marks of a huge page that is one process's own again."""
    for i in range(HPAGE_PMD_NR):
        flags = head + i * PAGE.SIZE + PAGE.flags
        if read_once(flags) & Pg.ANON_SHARED:
            atomic_fetch_and(flags, ~Pg.ANON_SHARED)
