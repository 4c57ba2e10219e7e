# SPDX-License-Identifier: MIT
"""The tree of VMAs as a latched tree: two copies, of which a lookup walks the one at rest.

Answers to include/linux/rbtree_latch.h and the latch of include/linux/seqlock.h (Linux 5.12).  Only
with CONFIG_VMA_LATCH; else there is one copy, and lookups walk it while it changes.

A writer holds the mmap lock for writing.  It counts ``mm_rb_seq`` up, changes the first copy,
counts up again, and changes the second copy in the same way.  While the count is odd, lookups walk
the second copy, else the first; one that finds the count changed at its end starts again.  So no
lookup meets a tree in the middle of a rotation, and what stays mapped is always found.

The copies hold the same VMAs in the same shape, because they go through the same changes.  What a
VMA says of itself, its start and end, there is once: a lookup may still find a VMA whose range is
being changed, or one that has just left, so its caller has to check `mmap_seq` as ever.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.mm.config import CONFIG_VMA_LATCH
from spfemu.mm.rbtree import (
    RB_FIRST,
    RB_SECOND,
    RB_WALK_LIMIT,
    rb_erase,
    rb_insert_color,
    rb_link_node,
    vma_gap_update,
)
from spfemu.primitives import load, read_once, smp_load_acquire, smp_rmb, smp_wmb, write_once


@kernel
def raw_write_seqcount_latch(mm: int) -> None:
    """Turn lookups over to the other copy of the tree.

    The first barrier orders the changes of the copy that lookups go to now before the count, and
    pairs with the acquire in `latch_tree_find`.  The second orders the count before the changes of
    the other copy, and pairs with the read barrier there.
    """
    smp_wmb()
    write_once(mm + MM.mm_rb_seq, load(mm + MM.mm_rb_seq) + 1)
    smp_wmb()


@kernel
def vma_rb_insert(mm: int, vma: int, parent: int, side: int) -> None:
    """Hang `vma` below `parent` on a side (the offset of a link), as the root if that is 0.

    The gaps of what is there must be up to date.  Source: __vma_link_rb, latch_tree_insert.
    """
    root = mm + MM.mm_rb
    if CONFIG_VMA_LATCH:
        raw_write_seqcount_latch(mm)
    rb_link_node(vma, parent, parent + side if parent != 0 else root, RB_FIRST)
    vma_gap_update(vma)
    rb_insert_color(root, vma, RB_FIRST)
    if CONFIG_VMA_LATCH:
        raw_write_seqcount_latch(mm)
        root = mm + MM.mm_rb_latch
        rb_link_node(vma, parent, parent + RB_SECOND + side if parent != 0 else root, RB_SECOND)
        rb_insert_color(root, vma, RB_SECOND)


@kernel
def vma_rb_erase(mm: int, vma: int) -> None:
    """Take `vma`, which is still in the list, out of the tree (vma_rb_erase, latch_tree_erase)."""
    if CONFIG_VMA_LATCH:
        raw_write_seqcount_latch(mm)
    rb_erase(mm + MM.mm_rb, vma, RB_FIRST)
    if CONFIG_VMA_LATCH:
        raw_write_seqcount_latch(mm)
        rb_erase(mm + MM.mm_rb_latch, vma, RB_SECOND)


@kernel
def vma_rb_walk(root: int, addr: int, links: int) -> int:
    """Walk a copy of the tree to the first VMA that ends behind `addr`; 0 if there is none.

    May run while the copy changes; then the answer may be wrong, but it is 0 or a slot of the
    slab, and the walk is bounded (see rbtree.py).
    """
    found = 0
    node = read_once(root)
    steps = 0
    while node != 0:
        if steps == RB_WALK_LIMIT:
            return 0
        steps += 1
        if read_once(node + VMA.vm_end) > addr:
            found = node
            if read_once(node + VMA.vm_start) <= addr:
                return found
            node = read_once(node + links + VMA.rb_left)
        else:
            node = read_once(node + links + VMA.rb_right)
    return found


@kernel
def latch_tree_find(mm: int, addr: int) -> int:
    """Walk the copy of the tree that is at rest; again if it did not stay so.

    Each time round a writer has changed the tree meanwhile.  The kernel reads the count without
    an acquire, because the copy's address depends on it; a compiler may make a branch of that.
    Source: latch_tree_find, read_seqcount_latch_retry.
    """
    while True:
        seq = smp_load_acquire(mm + MM.mm_rb_seq)
        if seq & 1:
            found = vma_rb_walk(mm + MM.mm_rb_latch, addr, RB_SECOND)
        else:
            found = vma_rb_walk(mm + MM.mm_rb, addr, RB_FIRST)
        # the loads of the walk come before the count is read again: see raw_write_seqcount_latch
        smp_rmb()
        if read_once(mm + MM.mm_rb_seq) == seq:
            return found


@kernel
def vma_rb_lookup(mm: int, addr: int) -> int:
    """Find the first VMA that ends behind `addr` in the tree; 0 if there is none."""
    if CONFIG_VMA_LATCH:
        return latch_tree_find(mm, addr)
    return vma_rb_walk(mm + MM.mm_rb, addr, RB_FIRST)
