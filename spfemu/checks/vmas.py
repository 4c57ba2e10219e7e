# SPDX-License-Identifier: MIT
"""VMAs: the tree's rules, the list, what the mm says about them, and their slabs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spfemu.checks.findings import ASTRAY, END, Words, walk
from spfemu.checks.state import State
from spfemu.layout import PAGE_MASK, PAGE_SHIFT
from spfemu.mm.flags import Vm
from spfemu.mm.map_type import MAX_LFS_SIZE
from spfemu.mm.rbtree import RbColor
from spfemu.mm.vma import SlabState, vm_get_page_prot

KNOWN_FLAGS = sum(Vm)


@dataclass
class Tree:
    """The part of a tree that is one: every node once, below the parent that it was reached by."""

    nodes: list[int] = field(default_factory=list)  # parents before children
    left: dict[int, int] = field(default_factory=dict)
    right: dict[int, int] = field(default_factory=dict)

    def in_order(self) -> list[int]:
        """The nodes from left to right."""
        order: list[int] = []
        stack: list[int] = []
        node = self.nodes[0] if self.nodes else END
        while stack or node >= 0:
            while node >= 0:
                stack.append(node)
                node = self.left[node]
            node = stack.pop()
            order.append(node)
            node = self.right[node]
        return order


def check_vmas(state: State, mm: int) -> None:
    """Check tree, list and VMAs of one mm and note them in `state.vmas`."""
    tree = _read_tree(state, mm)
    order = tree.in_order()
    listed = _read_list(state, mm)
    _check_same_order(state, mm, order, listed)
    _check_colors(state, mm, tree)
    _check_gaps(state, mm, tree, order)
    starts = state.segment.vmas["vm_start"]
    members = sorted({*order, *listed}, key=lambda i: int(starts[i]))
    state.vmas[mm] = np.asarray(members, np.int64)
    state.vma_owners.claim(state.vmas[mm], f"mm {mm}")
    for index in members:
        _check_vma(state, mm, index)
    _check_overlaps(state, mm)
    _check_totals(state, mm)


def _read_tree(state: State, mm: int) -> Tree:
    """Walk the tree from its root; report links that lead astray and wrong parents."""
    slots, add, vmas = state.vma_slots, state.findings.add, state.segment.vmas
    tree = Tree()
    seen: set[int] = set()

    def accept(link: int, where: str, parent: int) -> int:
        """Return the node that a link leads to if it may be walked, else END."""
        node = slots.index(link)
        if node == ASTRAY:
            add(f"tree of mm {mm}: {where} leads to {link:#x}, no VMA slot")
            return END
        if node in seen:
            add(f"tree of mm {mm}: {where} leads to {slots.describe(node)} a second time")
            return END
        if node >= 0:
            seen.add(node)
            found = int(vmas["rb_parent"][node])
            if found != parent:
                add(
                    f"tree of mm {mm}: {slots.describe(node)} has rb_parent {found:#x} instead "
                    f"of {parent:#x}"
                )
        return node

    root = accept(int(state.segment.mms["mm_rb"][mm]), "the root", 0)
    if root >= 0:
        tree.nodes.append(root)
    for node in tree.nodes:
        for side, links in (("rb_left", tree.left), ("rb_right", tree.right)):
            where = f"{side} of {slots.describe(node)}"
            child = accept(int(vmas[side][node]), where, slots.address(node))
            links[node] = child
            if child >= 0:
                tree.nodes.append(child)
    return tree


def _read_list(state: State, mm: int) -> list[int]:
    """Walk the list; report links that lead astray and wrong back links."""
    slots, vmas = state.vma_slots, state.segment.vmas
    links = slots.indexes(vmas["vm_next"]).tolist()
    listed = walk(
        state.findings, f"VMA list of mm {mm}", slots, links, int(state.segment.mms["mmap"][mm])
    )
    before = [0, *(slots.address(i) for i in listed[:-1])]
    state.findings.each(
        [(i, b) for i, b in zip(listed, before, strict=False) if int(vmas["vm_prev"][i]) != b],
        lambda pair: (
            f"VMA list of mm {mm}: {state.describe_vma(pair[0])} has vm_prev "
            f"{int(vmas['vm_prev'][pair[0]]):#x} instead of {pair[1]:#x}"
        ),
    )
    return listed


def _check_same_order(state: State, mm: int, order: list[int], listed: list[int]) -> None:
    if order == listed:
        return
    for position, pair in enumerate(zip(order, listed, strict=False)):
        if pair[0] != pair[1]:
            in_tree, in_list = map(state.describe_vma, pair)
            state.findings.add(
                f"tree and list of mm {mm} differ at position {position}: {in_tree} in the tree, "
                f"{in_list} in the list"
            )
            return
    state.findings.add(
        f"tree and list of mm {mm} differ: {len(order)} VMAs in the tree, {len(listed)} in the list"
    )


def _check_colors(state: State, mm: int, tree: Tree) -> None:
    """Check the red-black rules, from the leaves up."""
    add, slots = state.findings.add, state.vma_slots
    colors = state.segment.vmas["rb_color"]
    name = f"tree of mm {mm}"
    heights = {END: 1}
    uneven = False
    for node in reversed(tree.nodes):
        color = int(colors[node])
        children = tree.left[node], tree.right[node]
        left, right = (heights[c] for c in children)
        if left != right and not uneven:
            add(
                f"{name}: {left - 1} black nodes to the left below {slots.describe(node)}, "
                f"{right - 1} to the right"
            )
            uneven = True  # it shows again at every node above
        heights[node] = max(left, right) + (color == RbColor.BLACK)
        if color not in (RbColor.RED, RbColor.BLACK):
            add(f"{name}: {slots.describe(node)} has color {color}")
        if color == RbColor.RED and any(c >= 0 and colors[c] == RbColor.RED for c in children):
            add(f"{name}: {slots.describe(node)} is red and has a red child")
    if tree.nodes and colors[tree.nodes[0]] != RbColor.BLACK:
        add(f"{name}: the root, {slots.describe(tree.nodes[0])}, is not black")


def _check_gaps(state: State, mm: int, tree: Tree, order: list[int]) -> None:
    """Check rb_subtree_gap of each node."""
    vmas = state.segment.vmas
    gaps = {END: 0}
    end = 0
    for node in order:
        gaps[node] = int(vmas["vm_start"][node]) - end
        end = int(vmas["vm_end"][node])
    wrong = []
    for node in reversed(tree.nodes):
        gaps[node] = max(gaps[node], gaps[tree.left[node]], gaps[tree.right[node]])
        if int(vmas["rb_subtree_gap"][node]) != gaps[node]:
            wrong.append(node)
    state.findings.each(
        wrong,
        lambda i: (
            f"tree of mm {mm}: {state.describe_vma(i)} has rb_subtree_gap "
            f"{int(vmas['rb_subtree_gap'][i]):#x} instead of {gaps[i]:#x}"
        ),
    )


def _check_vma(state: State, mm: int, index: int) -> None:
    """Check one VMA's own fields."""
    name, add = state.describe_vma(index), state.findings.add
    vma = state.segment.vmas[index]
    start, end, flags = int(vma["vm_start"]), int(vma["vm_end"]), int(vma["vm_flags"])
    limits = state.segment.mms[mm]
    if start >= end or (start | end) & ~PAGE_MASK:
        add(f"mm {mm}: {name} is no range of whole pages")
    elif start < int(limits["mmap_min_addr"]) or end > int(limits["task_size"]):
        add(f"mm {mm}: {name} lies outside user space")
    if int(vma["vm_mm"]) != state.mm_slots.address(mm):
        add(f"mm {mm}: {name} has vm_mm {int(vma['vm_mm']):#x}")
    if flags & ~KNOWN_FLAGS:
        add(f"mm {mm}: {name} has unknown vm_flags {flags:#x}")
    if int(vma["vm_page_prot"]) != vm_get_page_prot(flags, int(vma["vm_ops"])):
        add(f"mm {mm}: {name} has vm_page_prot {int(vma['vm_page_prot']):#x}")
    # mremap takes the offset along; pages are checked against it where they are mapped
    last = MAX_LFS_SIZE if vma["vm_file"] else int(limits["task_size"])
    if not 0 <= int(vma["vm_pgoff"]) <= last >> PAGE_SHIFT:
        add(f"mm {mm}: {name} has vm_pgoff {int(vma['vm_pgoff']):#x}")
    if int(vma["slab_state"]) != SlabState.IN_USE:
        add(f"mm {mm}: {name} has slab_state {int(vma['slab_state'])}")
    if state.anon_vma_slots.index(int(vma["anon_vma"])) == ASTRAY:
        add(f"mm {mm}: {name} points at {int(vma['anon_vma']):#x}, no anon_vma")


def _check_overlaps(state: State, mm: int) -> None:
    members = state.vmas[mm]
    starts, ends = _bounds(state, mm)
    state.findings.each(
        np.flatnonzero(ends[:-1] > starts[1:]),
        lambda i: (
            f"mm {mm}: {state.describe_vma(members[i])} overlaps "
            f"{state.describe_vma(members[i + 1])}"
        ),
    )


def _bounds(state: State, mm: int) -> tuple[Words, Words]:
    members = state.segment.vmas[state.vmas[mm]]
    return members["vm_start"], members["vm_end"]


def _check_totals(state: State, mm: int) -> None:
    """Check what the mm says about its VMAs as a whole."""
    starts, ends = _bounds(state, mm)
    expected = {
        "map_count": len(starts),
        "highest_vm_end": int(ends.max()) if len(ends) else 0,
        **_count_pages(state, mm),
    }
    for name, value in expected.items():
        found = int(state.segment.mms[name][mm])
        if found != value:
            state.findings.add(f"{name} of mm {mm} is {found:#x} instead of {value:#x}")


def _count_pages(state: State, mm: int) -> dict[str, int]:
    """Count pages of mappings as the mm's accounts do."""
    starts, ends = _bounds(state, mm)
    flags = state.segment.vmas["vm_flags"][state.vmas[mm]]
    pages = (ends - starts) >> PAGE_SHIFT
    data = (flags & int(Vm.WRITE | Vm.SHARED | Vm.GROWSDOWN)) == int(Vm.WRITE)
    return {
        "total_vm": int(pages.sum()),
        "data_vm": int(pages[data].sum()),
        "stack_vm": int(pages[(flags & int(Vm.GROWSDOWN)) != 0].sum()),
        "locked_vm": int(pages[(flags & int(Vm.LOCKED)) != 0].sum()),
    }


def check_vma_slab(state: State) -> None:
    """Check that each slot is in a tree, in a queue or on a free list, and says so."""
    segment, slots = state.segment, state.vma_slots
    links = slots.indexes(segment.vmas["vm_start"]).tolist()
    name = "the list of free VMA slots"
    free = walk(state.findings, name, slots, links, int(segment.system["vma_free"]))
    state.vma_owners.claim(free, name)
    expected = np.full(slots.count, SlabState.RCU_PENDING)
    expected[free] = SlabState.FREE
    for index, cpu in enumerate(segment.cpus):
        name = f"the VMA cache of CPU {index}"
        cached = walk(state.findings, name, slots, links, int(cpu["vma_list"]))
        if len(cached) != int(cpu["vma_count"]):
            state.findings.add(f"{name} holds {len(cached)} slots, but counts {cpu['vma_count']}")
        state.vma_owners.claim(cached, name)
        expected[cached] = SlabState.FREE
    lost = state.vma_owners.lost()
    state.findings.each(
        lost,
        lambda i: (
            f"{state.describe_vma(i)} is lost: slab_state {segment.vmas['slab_state'][i]}, but in "
            "no tree, queue or list"
        ),
    )
    expected[lost] = segment.vmas["slab_state"][lost]
    for members in state.vmas.values():  # these have been checked where they are
        expected[members] = segment.vmas["slab_state"][members]
    state.findings.each(
        np.flatnonzero(segment.vmas["slab_state"] != expected),
        lambda i: (
            f"{slots.describe(i)} belongs to {state.vma_owners.owner_of(i)}, but has slab_state "
            f"{segment.vmas['slab_state'][i]}"
        ),
    )
    _check_vmacaches(state)


def _check_vmacaches(state: State) -> None:
    """Check that what a CPU may still take from its VMA cache is a VMA of its mm."""
    for index, cpu in enumerate(state.segment.cpus):
        mm = state.mm_slots.index(int(cpu["mm"]))
        if mm not in state.vmas:
            continue
        if int(cpu["vmacache_seqnum"]) != int(state.segment.mms["vmacache_seqnum"][mm]):
            continue
        members = set(state.vmas[mm].tolist())
        for address in cpu["vmacache"].tolist():
            if address != 0 and state.vma_slots.index(address) not in members:
                state.findings.add(
                    f"the vmacache of CPU {index} holds {address:#x}, no VMA of mm {mm}"
                )
