# SPDX-License-Identifier: MIT
"""What the tests of VMAs share: the whole kernel on a segment, checkers of its structures."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import tree_ops
from mm_machine import Layer, Machine, renamed
from whole_kernel import MODULES

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.layout import ANON_VMA, VMA
from spfemu.mm.rbtree import RbColor
from spfemu.mm.vma import SlabState
from spfemu.protocols import classic
from spfemu.segment import Geometry, Segment

CONFIG = {"CONFIG_LINUX_VERSION": (5 << 8) + 12}
ENGINES = {"native": NativeEngine, "plain": PlainEngine, "stepped": StepEngine}
OPS = functions_of(tree_ops)
LAYERS: dict[str, Layer] = {
    "tree_ops": OPS,
    "blind": OPS
    | renamed(OPS, mmap_seq_read_start="blind_read_start", mmap_seq_read_check="blind_read_check"),
    "seqnum_first": OPS | renamed(OPS, detach_vmas_to_be_unmapped="detach_seqnum_first"),
    "record_unmap": OPS | renamed(OPS, unmap_region="record_unmap_region"),
}
"""Functions that tests put over the kernel's, by name."""


@functools.cache
def engine(
    name: str, layer: str = "tree_ops", latch: int = 0
) -> NativeEngine | PlainEngine | StepEngine:
    """Return the kernel with a layer of `LAYERS` on an engine, compiled once per session.

    `latch` is CONFIG_VMA_LATCH.
    """
    kernel = [functions_of(import_module("spfemu.mm." + module)) for module in MODULES]
    config = {**CONFIG, "CONFIG_VMA_LATCH": latch}
    program = link([*kernel, functions_of(classic), LAYERS[layer]], config)
    return ENGINES[name](program)


class VmaMachine(Machine):
    """A segment with one mm of one thread; functions are run on CPU 0 unless said otherwise."""

    def __init__(
        self, name: str = "native", layer: str = "tree_ops", latch: int = 0, **geometry: int
    ) -> None:
        super().__init__(engine(name, layer, latch), Segment.create(Geometry(**geometry)))
        self.latch = latch
        self.reset()

    def reset(self) -> None:
        """Put the segment into its initial state."""
        self.segment.reset()
        self.mm = self.segment.mms[0]
        self.mm["mm_users"] = 1

    def close(self) -> None:
        """Close the segment's descriptor."""
        self.segment.close()

    def run(self, name: str, *arguments: int, cpu: int = 0) -> Any:
        """Run a kernel function with the CPU's address before `arguments`."""
        return self.call(name, self.cpu(cpu), *arguments)

    def run_mm(self, name: str, *arguments: int, cpu: int = 0) -> Any:
        """Run a kernel function with CPU and mm before `arguments`."""
        return self.run(name, self.segment.mm(0), *arguments, cpu=cpu)

    def slot(self, address: int) -> Any:
        """The VMA at `address` as a NumPy record."""
        index, rest = divmod(address - self.segment.address["vmas"], VMA.SIZE)
        inside = rest == 0 and 0 <= index < len(self.segment.vmas)
        assert inside, f"{address:#x} is no slot of the slab"
        return self.segment.vmas[index]

    def vmas(self) -> list[Any]:
        """All VMAs in the order of the list, which must be linked both ways."""
        found = []
        prev, address = 0, int(self.mm["mmap"])
        while address:
            vma = self.slot(address)
            assert vma["vm_prev"] == prev, "vm_prev is not the VMA before"
            found.append(vma)
            assert len(found) <= len(self.segment.vmas), "the list has a cycle"
            prev, address = address, int(vma["vm_next"])
        return found

    def ranges(self) -> list[tuple[int, int]]:
        """Start and end of each VMA."""
        return [(int(v["vm_start"]), int(v["vm_end"])) for v in self.vmas()]

    def address_of(self, vma: Any) -> int:
        """Address of a VMA's record."""
        return int(vma.__array_interface__["data"][0])


def check_tree(machine: VmaMachine) -> int:
    """Check all rules of the tree and its agreement with the list; returns its black height."""
    vmas = machine.vmas()
    in_order: list[int] = []
    height, _gap = _check_subtree(machine, int(machine.mm["mm_rb"]), 0, in_order)
    assert in_order == [machine.address_of(v) for v in vmas], "tree and list differ"
    ranges = machine.ranges()
    assert all(start < end for start, end in ranges), "a VMA is empty"
    for (_, end), (start, _) in itertools.pairwise(ranges):
        assert end <= start, "VMAs overlap or are out of order"
    assert machine.mm["map_count"] == len(vmas), "map_count is wrong"
    highest = ranges[-1][1] if ranges else 0
    assert machine.mm["highest_vm_end"] == highest, "highest_vm_end is wrong"
    if machine.latch:
        check_second_copy(machine, vmas)
    return height


def check_second_copy(machine: VmaMachine, vmas: list[Any]) -> None:
    """Check that the latch is at rest and both copies of the tree have the same shape."""
    assert machine.mm["mm_rb_seq"] % 2 == 0, "mm_rb_seq is odd"
    assert machine.mm["mm_rb_latch"] == machine.mm["mm_rb"], "the copies have different roots"
    for name in ("left", "right", "parent", "color"):
        for vma in vmas:
            assert vma["latch_" + name] == vma["rb_" + name], f"latch_{name} is not rb_{name}"


def _check_subtree(
    machine: VmaMachine, address: int, parent: int, in_order: list[int]
) -> tuple[int, int]:
    """Return (black height, largest gap) of a subtree."""
    if address == 0:
        return 0, 0
    vma = machine.slot(address)
    assert len(in_order) <= len(machine.segment.vmas), "the tree has a cycle"
    assert vma["rb_parent"] == parent, "rb_parent is not the parent"
    red = vma["rb_color"] == RbColor.RED
    if parent == 0:
        assert not red, "the root is red"
    else:
        assert not (red and machine.slot(parent)["rb_color"] == RbColor.RED), "red below red"
    left, left_gap = _check_subtree(machine, int(vma["rb_left"]), address, in_order)
    in_order.append(address)
    right, right_gap = _check_subtree(machine, int(vma["rb_right"]), address, in_order)
    assert left == right, "black heights differ"
    prev = int(vma["vm_prev"])
    own = int(vma["vm_start"]) - (int(machine.slot(prev)["vm_end"]) if prev else 0)
    gap = max(own, left_gap, right_gap)
    assert vma["rb_subtree_gap"] == gap, "rb_subtree_gap is wrong"
    return left + (not red), gap


def check_slabs(machine: VmaMachine) -> None:
    """Check at rest, RCU run, that every VMA slot and anon_vma is where its state says."""
    segment = machine.segment
    for cpu in range(len(segment.cpus)):
        machine.run("rcu_barrier", cpu=cpu)
    linked = {machine.address_of(v) for v in machine.vmas()}
    free = list(_chain(machine, int(segment.system["vma_free"])))
    for cpu in segment.cpus:
        cached = list(_chain(machine, int(cpu["vma_list"])))
        assert len(cached) == cpu["vma_count"], "vma_count is wrong"
        free += cached
    assert len(set(free)) == len(free), "a slot is free twice"
    by_state: dict[int, set[int]] = {state: set() for state in SlabState}
    for vma in segment.vmas:
        by_state[int(vma["slab_state"])].add(machine.address_of(vma))
    assert by_state[SlabState.FREE] == set(free), "free slots and their states differ"
    assert by_state[SlabState.IN_USE] == linked, "a VMA in use is not linked"
    assert not by_state[SlabState.RCU_PENDING], "a VMA waits for a grace period for ever"
    _check_anon_vmas(machine)


def _chain(machine: VmaMachine, address: int) -> Iterable[int]:
    while address:
        yield address
        address = int(machine.slot(address)["vm_start"])


def _check_anon_vmas(machine: VmaMachine) -> None:
    segment = machine.segment
    users = [int(v["anon_vma"]) for v in machine.vmas()]
    for index, anon_vma in enumerate(segment.anon_vmas):
        count = users.count(segment.address["anon_vmas"] + index * ANON_VMA.SIZE)
        assert anon_vma["in_use"] == (count > 0), "an anon_vma is lost or freed too early"
        if count:
            assert anon_vma["refcount"] == count, "the refcount is not the number of VMAs"
