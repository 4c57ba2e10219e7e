# SPDX-License-Identifier: MIT
"""VMAs, their tree, list and slabs that are not as they must be are reported."""

from typing import Any

from corruption import Corrupt, Corruptions, check_reported
from good_segment import GoodSegment, area

from spfemu.layout import ANON_VMA
from spfemu.mm.flags import FileOps
from spfemu.mm.rbtree import RbColor
from spfemu.mm.vma import SlabState

corruptions = Corruptions()


# Tree and list


def _root(good: GoodSegment) -> Any:
    return good.vma_at(int(good.segment.mms["mm_rb"][0]))


@corruptions.reports(
    "^tree of mm 0: the root leads to 0x9, no VMA slot$", "^tree and list of mm 0 differ: 0 "
)
def root_astray(good: GoodSegment) -> None:
    good.segment.mms["mm_rb"][0] = 9


def _leaf(good: GoodSegment) -> Any:
    """A red VMA without children."""
    for vma in good.segment.vmas:
        if vma["slab_state"] != SlabState.IN_USE or vma["vm_mm"] != good.segment.mm(0):
            continue
        if not vma["rb_left"] and not vma["rb_right"] and vma["rb_color"] == RbColor.RED:
            return vma
    raise AssertionError("the good segment's tree has no red leaf")


def _parent(good: GoodSegment, vma: Any) -> Any:
    return good.vma_at(int(vma["rb_parent"]))


@corruptions.reports(
    "^tree of mm 0: rb_(left|right) of VMA slot .* leads to 0x5, no VMA slot$",
)
def link_astray(good: GoodSegment) -> None:
    _leaf(good)["rb_left"] = 5


@corruptions.reports("^tree of mm 0: rb_left of VMA slot .* leads to VMA slot .* a second time$")
def cycle_in_tree(good: GoodSegment) -> None:
    _leaf(good)["rb_left"] = good.segment.mms["mm_rb"][0]


@corruptions.reports("^tree of mm 0: VMA slot .* has rb_parent 0x0 instead of 0x")
def parent_wrong(good: GoodSegment) -> None:
    _leaf(good)["rb_parent"] = 0


@corruptions.reports(
    r"^tree of mm 0: \d black nodes to the left below VMA slot .*, \d to the right$"
)
def black_heights_differ(good: GoodSegment) -> None:
    _leaf(good)["rb_color"] = RbColor.BLACK


@corruptions.reports("^tree of mm 0: VMA slot .* has color 7$")
def no_color(good: GoodSegment) -> None:
    _leaf(good)["rb_color"] = 7


@corruptions.reports(
    "^tree of mm 0: VMA slot .* is red and has a red child$", "black nodes to the left below"
)
def red_below_red(good: GoodSegment) -> None:
    _parent(good, _leaf(good))["rb_color"] = RbColor.RED


@corruptions.reports(
    "^tree of mm 0: the root, VMA slot .*, is not black$",
    "^tree of mm 0: VMA slot .* is red and has a red child$",
)
def red_root(good: GoodSegment) -> None:
    _root(good)["rb_color"] = RbColor.RED


@corruptions.reports(
    r"^tree of mm 0: VMA \[0x10000000, 0x10008000\) rw- at .* has rb_subtree_gap 0x1 instead"
)
def gap_wrong(good: GoodSegment) -> None:
    good.vma(area(0))["rb_subtree_gap"] = 1


@corruptions.reports(
    "^tree and list of mm 0 differ at position 0: ",
    "has vm_prev 0x0 instead of 0x",
    "has vm_prev 0x.* instead of 0x0$",
    "has vm_prev 0x.* instead of 0x",
)
def list_in_another_order(good: GoodSegment) -> None:
    first, second = good.vma(area(0)), good.vma(area(1))
    one, two = int(good.segment.mms["mmap"][0]), int(first["vm_next"])
    good.segment.mms["mmap"][0] = two
    first["vm_next"], second["vm_next"] = second["vm_next"], one


@corruptions.reports("^tree and list of mm 0 differ: 15 VMAs in the tree, 1 in the list$")
def list_cut(good: GoodSegment) -> None:
    good.vma(area(0))["vm_next"] = 0


@corruptions.reports(
    "^VMA list of mm 0 leads from VMA slot .* to what is no VMA slot$",
    "^tree and list of mm 0 differ: 15 VMAs in the tree, 1 in the list$",
)
def list_astray(good: GoodSegment) -> None:
    good.vma(area(0))["vm_next"] = 64


@corruptions.reports(
    "^VMA list of mm 0 runs in a circle through VMA slot",
    "^tree and list of mm 0 differ: 15 VMAs in the tree, 2 in the list$",
)
def list_in_a_circle(good: GoodSegment) -> None:
    good.vma(area(1))["vm_next"] = good.segment.mms["mmap"][0]


@corruptions.reports(r"^VMA list of mm 0: VMA \[0x10100000, .* has vm_prev 0x0 instead of 0x")
def back_link_wrong(good: GoodSegment) -> None:
    good.vma(area(1))["vm_prev"] = 0


# Fields


@corruptions.reports(
    r"^mm 0: VMA \[0x10100000, 0x10108001\) rw- at 0x.* is no range of whole pages$",
    "^tree of mm 0: .* has rb_subtree_gap",
)
def half_a_page(good: GoodSegment) -> None:
    good.vma(area(1))["vm_end"] += 1


@corruptions.reports("^mm 0: .* lies outside user space$")
def below_user_space(good: GoodSegment) -> None:
    good.segment.mms["mmap_min_addr"][0] = area(0, 1)


@corruptions.reports(
    r"^mm 0: VMA \[0x10000000, 0x10101000\) rw- .* overlaps VMA \[0x10100000, 0x10108000\) rw-",
    "^total_vm of mm 0 is",
    "^data_vm of mm 0 is",
)
def overlap(good: GoodSegment) -> None:
    good.vma(area(0))["vm_end"] = area(1, 1)


@corruptions.reports(r"^mm 0: VMA \[0x10000000, .* has vm_mm 0x11$")
def foreign_vma(good: GoodSegment) -> None:
    good.vma(area(0))["vm_mm"] = 0x11


@corruptions.reports(r"^mm 0: VMA \[0x10000000, .* has unknown vm_flags 0x2001")
def unknown_flags(good: GoodSegment) -> None:
    good.vma(area(0))["vm_flags"] |= 1 << 33


@corruptions.reports(r"^mm 0: VMA \[0x10000000, .* has vm_page_prot 0x0$")
def page_prot_wrong(good: GoodSegment) -> None:
    good.vma(area(0))["vm_page_prot"] = 0


@corruptions.reports(r"^mm 0: VMA \[.* has vm_pgoff -0x1$")
def pgoff_wrong(good: GoodSegment) -> None:
    _unmapped_vma(good)["vm_pgoff"] = -1


@corruptions.reports(r"^mm 0: VMA \[0x10000000, .* has vm_file 0x0 and vm_ops 2$")
def file_mapping(good: GoodSegment) -> None:
    good.vma(area(0))["vm_ops"] = FileOps.SHMEM


@corruptions.reports(r"^mm 0: VMA \[0x10000000, .* has slab_state 0$")
def slab_state_wrong(good: GoodSegment) -> None:
    good.vma(area(0))["slab_state"] = SlabState.FREE


@corruptions.reports(r"^mm 0: VMA \[.* points at 0x33, no anon_vma$")
def anon_vma_astray(good: GoodSegment) -> None:
    _unmapped_vma(good)["anon_vma"] = 0x33


def _unmapped_vma(good: GoodSegment) -> Any:
    """The VMA of the heap: no page of it was touched."""
    return good.vma(int(good.segment.mms["start_brk"][0]))


@corruptions.reports("^map_count of mm 0 is 0x10 instead of 0xf$")
def map_count_wrong(good: GoodSegment) -> None:
    good.segment.mms["map_count"][0] += 1


@corruptions.reports("^highest_vm_end of mm 1 is 0x0 instead of 0x10008000$")
def highest_end_wrong(good: GoodSegment) -> None:
    good.segment.mms["highest_vm_end"][1] = 0


@corruptions.reports("^total_vm of mm 1 is 0x9 instead of 0x8$")
def total_vm_wrong(good: GoodSegment) -> None:
    good.segment.mms["total_vm"][1] += 1


# Slabs of VMAs and anon_vmas


@corruptions.reports(
    r"^VMA \[.* is lost: slab_state 0, but in no tree, queue or list$", "holds 5 slots, but"
)
def vma_slot_lost(good: GoodSegment) -> None:
    head = int(good.segment.cpus["vma_list"][0])
    good.segment.cpus["vma_list"][0] = good.vma_at(head)["vm_start"]


@corruptions.reports("^the VMA cache of CPU 0 holds 6 slots, but counts 7$")
def vma_count_wrong(good: GoodSegment) -> None:
    good.segment.cpus["vma_count"][0] += 1


@corruptions.reports(
    *["^VMA slot .* has two owners: the VMA cache of CPU 1 and the VMA cache of CPU 0$"] * 6,
    r"^VMA \[.* is lost: slab_state 0, .* \(and 1 more like this\)$",
    *[r"^VMA \[.* is lost: slab_state 0, but in no tree, queue or list$"] * 7,
    "^the VMA cache of CPU 1 holds 6 slots, but counts 9$",
)
def vma_slots_in_two_caches(good: GoodSegment) -> None:
    good.segment.cpus["vma_list"][1] = good.segment.cpus["vma_list"][0]


@corruptions.reports("^VMA slot .* belongs to the list of free VMA slots, but has slab_state 1$")
def free_slot_in_use(good: GoodSegment) -> None:
    good.vma_at(int(good.segment.system["vma_free"]))["slab_state"] = SlabState.IN_USE


@corruptions.reports("^the vmacache of CPU 0 holds 0x.*, no VMA of mm 0$")
def stale_vmacache(good: GoodSegment) -> None:
    good.segment.cpus["vmacache"][0][1] = good.segment.system["vma_free"]


@corruptions.reports("^anon_vma .* has refcount 5, but 3 VMAs point at it$")
def anon_vma_refcount_wrong(good: GoodSegment) -> None:
    _anon_vma(good)["refcount"] = 5


@corruptions.reports("^anon_vma .* has in_use 0, but 3 VMAs point at it$")
def anon_vma_not_in_use(good: GoodSegment) -> None:
    _anon_vma(good)["in_use"] = 0


def _anon_vma(good: GoodSegment) -> Any:
    """The anon_vma that the parts of a split VMA share."""
    anon_vmas = good.segment.anon_vmas
    (index,) = (anon_vmas["refcount"] == 3).nonzero()[0]
    return anon_vmas[index]


@corruptions.reports(r"^the anon_vma cache of CPU 0 holds \d+ anon_vmas, but counts \d+$")
def anon_vma_count_wrong(good: GoodSegment) -> None:
    good.segment.cpus["anon_vma_count"][0] += 1


@corruptions.reports("^anon_vma .* is lost: no VMA points at it and it is not free$")
def anon_vma_lost(good: GoodSegment) -> None:
    system = good.segment.system
    head = (int(system["anon_vma_free"]) - good.segment.address["anon_vmas"]) // ANON_VMA.SIZE
    system["anon_vma_free"] = good.segment.anon_vmas["next_free"][head]


@corruptions.reports("^anon_vma .* has two owners: the list of free anon_vmas and VMAs$")
def anon_vma_free_and_in_use(good: GoodSegment) -> None:
    system, anon_vmas = good.segment.system, good.segment.anon_vmas
    _anon_vma(good)["next_free"] = system["anon_vma_free"]
    index = int((anon_vmas["refcount"] == 3).nonzero()[0][0])
    system["anon_vma_free"] = good.segment.address["anon_vmas"] + index * ANON_VMA.SIZE


@corruptions.parametrize
def test_reported(good: GoodSegment, corrupt: Corrupt, patterns: tuple[str, ...]) -> None:
    check_reported(good, corrupt, patterns)
