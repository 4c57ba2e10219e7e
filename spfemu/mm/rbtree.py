# SPDX-License-Identifier: MIT
"""The tree of VMAs: a red-black tree, rebalanced in place, that may be walked without a lock.

Answers to lib/rbtree.c and the augmented part of mm/mmap.c (Linux 5.12).  The links live in the
VMAs.  Each VMA also knows the largest gap in front of any VMA of its subtree, so that the search
for free addresses skips what is too full.

Changing the tree needs the mmap lock for writing.  A speculative fault walks it meanwhile
(`vma_rb_lookup` in vma.py).  What it can rely on:

* every ``rb_left`` and ``rb_right`` that was ever stored in a slot is 0 or a slot, also in slots
  that have left the tree, so the walk never leaves the slab;
* a rotation cuts the old link before it makes the new one, so in the order of the stores the
  walk meets no cycle; on a machine that reorders them it may for a moment, so walks are bounded;
* a walk may miss a VMA, or find one that was removed: its caller must check `mmap_seq`.

With CONFIG_VMA_LATCH there is a second copy of the tree (rbtree_latch.py), with links of its own.
So functions that change a tree are told which `links`: the offset from those of the first copy.
The second copy is for lookups only and knows no gaps.
"""

from enum import IntEnum

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.primitives import load, smp_wmb, store, write_once


class RbColor(IntEnum):
    """VMA.rb_color."""

    RED = 0
    BLACK = 1


RB_SIDES = VMA.rb_left + VMA.rb_right
"""``RB_SIDES - side`` is the other side, when `side` is the offset of a link."""

RB_FIRST = 0
"""`links` of the tree that everybody has."""
RB_SECOND = VMA.latch_left - VMA.rb_left
"""`links` of the second copy of a latched tree."""

RB_WALK_LIMIT = 2 * 64
"""Most steps of a lockless walk: a red-black tree of less than 2**64 nodes is not higher."""


@kernel
def vma_compute_gap(vma: int) -> int:
    """Return the free bytes between `vma` and the VMA before it."""
    prev = load(vma + VMA.vm_prev)
    start = load(vma + VMA.vm_start)
    return start - load(prev + VMA.vm_end) if prev != 0 else start


@kernel
def rb_subtree_gap(vma: int) -> int:
    """Return the largest gap of the subtree of `vma` (0 for none) as stored in its top."""
    return load(vma + VMA.rb_subtree_gap) if vma != 0 else 0


@kernel
def vma_compute_subtree_gap(vma: int) -> int:
    """Compute the largest gap of the subtree of `vma` from its own and its children's."""
    gap = vma_compute_gap(vma)
    left = rb_subtree_gap(load(vma + VMA.rb_left))
    right = rb_subtree_gap(load(vma + VMA.rb_right))
    gap = left if left > gap else gap
    return right if right > gap else gap


@kernel
def vma_gap_update(vma: int) -> None:
    """Bring the stored gaps up to date after the gap in front of `vma` has changed.

    Everything else in the tree must be up to date, so the way up ends where nothing changes.
    """
    while vma != 0:
        gap = vma_compute_subtree_gap(vma)
        if gap == load(vma + VMA.rb_subtree_gap):
            return
        store(vma + VMA.rb_subtree_gap, gap)
        vma = load(vma + VMA.rb_parent)


@kernel
def vma_gap_recompute(vma: int) -> None:
    """Recompute the stored gaps from `vma` to the root, whether they change or not."""
    while vma != 0:
        store(vma + VMA.rb_subtree_gap, vma_compute_subtree_gap(vma))
        vma = load(vma + VMA.rb_parent)


@kernel
def rb_is_red(node: int, links: int) -> int:
    """Tell whether `node` is red; no node counts as black."""
    return node != 0 and load(node + links + VMA.rb_color) == RbColor.RED


@kernel
def rb_link_node(node: int, parent: int, link: int, links: int) -> None:
    """Hang the new `node` below `parent` as a red leaf; `link` is the address of the link.

    The write barrier orders the initialisation of `node` before this and every later store that
    makes it reachable (a rotation may do it first on a weakly ordered machine).  It pairs with
    the address dependency from a link to the node's fields in `vma_rb_lookup`.
    """
    store(node + links + VMA.rb_parent, parent)
    store(node + links + VMA.rb_color, RbColor.RED)
    if links == RB_FIRST:
        store(node + VMA.rb_subtree_gap, 0)
    write_once(node + links + VMA.rb_left, 0)
    write_once(node + links + VMA.rb_right, 0)
    smp_wmb()
    write_once(link, node)


@kernel
def rb_change_child(root: int, parent: int, old: int, new: int, links: int) -> None:
    """Make `new` the child of `parent` (0: the root) in the place of `old`."""
    if parent == 0:
        write_once(root, new)
    elif load(parent + links + VMA.rb_left) == old:
        write_once(parent + links + VMA.rb_left, new)
    else:
        write_once(parent + links + VMA.rb_right, new)


@kernel
def rb_rotate(root: int, node: int, side: int, links: int) -> None:
    """Move `node` down to `side` (the offset of a link) and its child of the other side up."""
    other = RB_SIDES - side
    child = load(node + links + other)
    inner = load(child + links + side)
    parent = load(node + links + VMA.rb_parent)
    write_once(node + links + other, inner)
    write_once(child + links + side, node)
    rb_change_child(root, parent, node, child, links)
    if inner != 0:
        store(inner + links + VMA.rb_parent, node)
    store(node + links + VMA.rb_parent, child)
    store(child + links + VMA.rb_parent, parent)
    if links == RB_FIRST:
        store(child + VMA.rb_subtree_gap, load(node + VMA.rb_subtree_gap))
        store(node + VMA.rb_subtree_gap, vma_compute_subtree_gap(node))


@kernel
def rb_insert_color(root: int, node: int, links: int) -> None:
    """Restore the rules above the new red leaf `node` (Linux: rb_insert_color).

    `root` is the address of the word that holds the root.  The gaps must be up to date.
    """
    while True:
        parent = load(node + links + VMA.rb_parent)
        if parent == 0:
            store(node + links + VMA.rb_color, RbColor.BLACK)
            return
        if not rb_is_red(parent, links):
            return
        gparent = load(parent + links + VMA.rb_parent)
        side = VMA.rb_left if load(gparent + links + VMA.rb_left) == parent else VMA.rb_right
        uncle = load(gparent + links + RB_SIDES - side)
        if not rb_is_red(uncle, links):
            break
        store(parent + links + VMA.rb_color, RbColor.BLACK)
        store(uncle + links + VMA.rb_color, RbColor.BLACK)
        store(gparent + links + VMA.rb_color, RbColor.RED)
        node = gparent
    if load(parent + links + side) != node:
        rb_rotate(root, parent, side, links)
        parent = node
    rb_rotate(root, gparent, RB_SIDES - side, links)
    store(parent + links + VMA.rb_color, RbColor.BLACK)
    store(gparent + links + VMA.rb_color, RbColor.RED)


@kernel
def rb_erase(root: int, node: int, links: int) -> None:
    """Take `node` out of the tree (Linux: rb_erase_augmented).

    `root` is the address of the word that holds the root.  The list of VMAs must still contain
    `node`, so that the stored gaps agree with it.  The links of `node` itself stay as they are,
    for walkers that have just reached it.
    """
    left = load(node + links + VMA.rb_left)
    right = load(node + links + VMA.rb_right)
    if left != 0 and right != 0:
        successor = right
        while load(successor + links + VMA.rb_left) != 0:
            successor = load(successor + links + VMA.rb_left)
        black = load(successor + links + VMA.rb_color)
        child = load(successor + links + VMA.rb_right)
        parent = rb_replace_by_successor(root, node, successor, links)
    else:
        black = load(node + links + VMA.rb_color)
        child = left if left != 0 else right
        parent = load(node + links + VMA.rb_parent)
        rb_change_child(root, parent, node, child, links)
    if links == RB_FIRST:
        vma_gap_recompute(parent)
    if child != 0:
        # an only child is red and its parent black: recoloured, it takes its place
        store(child + links + VMA.rb_parent, parent)
        store(child + links + VMA.rb_color, RbColor.BLACK)
    elif black and parent != 0:
        rb_erase_color(root, parent, links)


@kernel
def rb_replace_by_successor(root: int, node: int, successor: int, links: int) -> int:
    """Put `successor`, the next node in order, into the place of `node`, which has two children.

    Returns the lowest node whose subtree has lost a node: the former parent of `successor`, or
    `successor` itself if that was `node`.
    """
    left = load(node + links + VMA.rb_left)
    right = load(node + links + VMA.rb_right)
    top = load(node + links + VMA.rb_parent)
    parent = successor
    if successor != right:
        parent = load(successor + links + VMA.rb_parent)
        write_once(parent + links + VMA.rb_left, load(successor + links + VMA.rb_right))
        write_once(successor + links + VMA.rb_right, right)
        store(right + links + VMA.rb_parent, successor)
    write_once(successor + links + VMA.rb_left, left)
    rb_change_child(root, top, node, successor, links)
    store(left + links + VMA.rb_parent, successor)
    store(successor + links + VMA.rb_parent, top)
    store(successor + links + VMA.rb_color, load(node + links + VMA.rb_color))
    return parent


@kernel
def rb_erase_color(root: int, parent: int, links: int) -> None:
    """Restore the rules after a black leaf below `parent` has gone (Linux: ____rb_erase_color).

    Throughout, the subtree of `node` (0 at first) has one black node too few on every path.
    """
    node = 0
    while parent != 0:
        side = VMA.rb_left if load(parent + links + VMA.rb_left) == node else VMA.rb_right
        other = RB_SIDES - side
        sibling = load(parent + links + other)
        vm_bug_on(sibling == 0, Bug.RBTREE_CORRUPT)
        if rb_is_red(sibling, links):
            rb_rotate(root, parent, side, links)
            store(sibling + links + VMA.rb_color, RbColor.BLACK)
            store(parent + links + VMA.rb_color, RbColor.RED)
            sibling = load(parent + links + other)
        inner = load(sibling + links + side)
        outer = load(sibling + links + other)
        if rb_is_red(inner, links) or rb_is_red(outer, links):
            rb_erase_color_rotate(root, parent, side, links)
            return
        store(sibling + links + VMA.rb_color, RbColor.RED)
        if rb_is_red(parent, links):
            store(parent + links + VMA.rb_color, RbColor.BLACK)
            return
        node = parent
        parent = load(node + links + VMA.rb_parent)


@kernel
def rb_erase_color_rotate(root: int, parent: int, side: int, links: int) -> None:
    """Give `side` of `parent` a black node more; the black sibling there has a red child."""
    other = RB_SIDES - side
    sibling = load(parent + links + other)
    outer = load(sibling + links + other)
    if not rb_is_red(outer, links):
        inner = load(sibling + links + side)
        rb_rotate(root, sibling, other, links)
        outer = sibling
        sibling = inner
    rb_rotate(root, parent, side, links)
    store(sibling + links + VMA.rb_color, load(parent + links + VMA.rb_color))
    store(parent + links + VMA.rb_color, RbColor.BLACK)
    store(outer + links + VMA.rb_color, RbColor.BLACK)
