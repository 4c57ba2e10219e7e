# SPDX-License-Identifier: MIT
"""The red-black tree of VMAs: its rules after every operation, and walks while it changes."""

from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mm_machine import STUCK_SECONDS
from vmas import VmaMachine, check_slabs, check_tree

from spfemu.events import Event
from spfemu.layout import PAGE_SIZE, VMA
from spfemu.mm.flags import Errno
from spfemu.mm.rbtree import RbColor

KEYS = 48


@pytest.fixture(params=[0, 1], ids=["walk", "latch"])
def machine(request):
    made = VmaMachine(nr_vmas=128, latch=request.param)
    yield made
    made.close()


def insert(machine: VmaMachine, key: int, pages: int = 1) -> int:
    """Insert a VMA whose start is decided by `key`."""
    start = (1 + key * 4) * PAGE_SIZE
    return machine.run_mm("tree_insert", start, start + pages * PAGE_SIZE)


def run_operations(machine: VmaMachine, operations: list[tuple[int, int]]) -> None:
    """Insert keys that are absent, erase those that are present; check after each."""
    present: dict[int, int] = {}
    for key, pages in operations:
        if key in present:
            machine.run_mm("tree_erase", present.pop(key))
        else:
            present[key] = insert(machine, key, pages)
            assert present[key] != 0
        height = check_tree(machine)
        assert height <= (len(present) + 1).bit_length()
        expected = [address for _, address in sorted(present.items())]
        assert [machine.address_of(v) for v in machine.vmas()] == expected


OPERATIONS = st.lists(st.tuples(st.integers(0, KEYS - 1), st.integers(1, 4)), max_size=120)


@given(operations=OPERATIONS)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rules_hold_after_every_operation(machine, operations):
    machine.reset()
    run_operations(machine, operations)


@given(operations=OPERATIONS)
@settings(max_examples=3, deadline=None)
def test_rules_hold_on_the_plain_engine(operations):
    machine = VmaMachine("plain", nr_vmas=128)
    run_operations(machine, operations)
    machine.close()


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_sorted_insertions_and_erasures_keep_the_tree_low(machine, order):
    keys = range(100) if order == "ascending" else range(99, -1, -1)
    slots = {}
    for key in keys:
        slots[key] = insert(machine, key)
        check_tree(machine)
    # no path is longer than twice the black height
    assert check_tree(machine) <= 7
    for key in keys:
        machine.run_mm("tree_erase", slots[key])
        check_tree(machine)
    assert machine.mm["mm_rb"] == 0
    check_slabs(machine)


def test_overlapping_insertions_are_refused(machine):
    assert insert(machine, 3, 4) != 0
    before = machine.ranges()
    assert insert(machine, 3) == 0
    start = before[0][0]
    for low, high in ((-1, 1), (3, 5), (1, 2), (-2, 8)):
        assert machine.run_mm("tree_insert", start + low * PAGE_SIZE, start + high * PAGE_SIZE) == 0
    assert machine.ranges() == before


@given(keys=st.sets(st.integers(0, KEYS - 1)), page=st.integers(0, 4 * KEYS + 8))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_lookup_finds_the_first_vma_that_ends_behind_the_address(machine, keys, page):
    machine.reset()
    for key in keys:
        insert(machine, key, 2)
    ranges = machine.ranges()
    addr = page * PAGE_SIZE + 123
    index = bisect_right([end for _, end in ranges], addr)
    found = machine.call("vma_rb_lookup", machine.segment.mm(0), addr)
    if index == len(ranges):
        assert found == 0
    else:
        assert int(machine.slot(found)["vm_start"]) == ranges[index][0]


def turn_colour(machine: VmaMachine, vma) -> None:
    vma["rb_color"] = RbColor.BLACK if vma["rb_color"] == RbColor.RED else RbColor.RED


def move(machine: VmaMachine, vma) -> None:
    vma["vm_start"] += 1 << 30
    vma["vm_end"] += 1 << 30


CORRUPTIONS = {
    "colour": (turn_colour, "the root is red|black heights differ|red below red"),
    "gap": (lambda m, v: v.__setitem__("rb_subtree_gap", 0), "rb_subtree_gap is wrong"),
    "parent": (lambda m, v: v.__setitem__("rb_parent", 4), "rb_parent is not the parent"),
    "cycle": (lambda m, v: v.__setitem__("rb_right", m.address_of(v)), "rb_parent is not"),
    "lost subtree": (lambda m, v: v.__setitem__("rb_left", 0), "differ"),
    "inside a slot": (lambda m, v: v.__setitem__("rb_left", m.address_of(v) + 8), "no slot"),
    "behind the slab": (lambda m, v: v.__setitem__("rb_right", slab_end(m)), "no slot"),
    "order": (move, "rb_subtree_gap is wrong"),
    "list": (lambda m, v: v.__setitem__("vm_prev", 0), "vm_prev is not the VMA before"),
    "count": (lambda m, v: m.mm.__setitem__("map_count", 5), "map_count is wrong"),
    "highest end": (lambda m, v: m.mm.__setitem__("highest_vm_end", 5), "highest_vm_end is wrong"),
}


def slab_end(machine: VmaMachine) -> int:
    return machine.segment.address["vmas"] + VMA.SIZE * len(machine.segment.vmas)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("top", [True, False])
def test_the_checker_finds_every_corruption(machine, name, top):
    corrupt, message = CORRUPTIONS[name]
    for key in range(12):
        insert(machine, key)
    check_tree(machine)
    victim = machine.slot(int(machine.mm["mm_rb"]))
    if not top:
        victim = machine.slot(int(victim["rb_left"]))
    corrupt(machine, victim)
    with pytest.raises(AssertionError, match=message):
        check_tree(machine)


def test_a_walk_round_a_cycle_ends():
    machine = VmaMachine(nr_vmas=16)
    low, high = insert(machine, 1), insert(machine, 5)
    machine.slot(low)["rb_right"], machine.slot(high)["rb_left"] = high, low
    machine.mm["mm_rb"] = high
    between = int(machine.slot(low)["vm_end"])
    # in a process of its own, which can be stopped if it does not end
    with machine.workers(STUCK_SECONDS) as workers:
        workers.start(0, "vma_rb_lookup", machine.segment.mm(0), between)
        assert workers.join() == {0: 0}
    machine.close()


STRIDES = 64
FIRST = 1 << 33
CALLS = 5_000
"""Calls of mmap by each writer."""
PROBES = 20_000
"""Probes, with a writer at work and without, that make a race."""


def links_stay_in_the_slab(machine: VmaMachine) -> bool:
    """Check all links of all slots, in the tree or not; also while the tree changes."""
    first = machine.segment.address["vmas"]
    for link in ("rb_left", "rb_right"):
        targets = np.array(machine.segment.vmas[link])
        targets = targets[targets != 0] - first
        if (targets < 0).any() or (targets >= VMA.SIZE * len(machine.segment.vmas)).any():
            return False
        if (targets % VMA.SIZE).any():
            return False
    return True


def test_walks_beside_a_writer_are_never_wrong_unnoticed():
    """A reader looks up what is always and what is never mapped while a writer changes the rest.

    What is always mapped is merged with, and split from, what comes and goes beside it.
    """
    machine = VmaMachine(nr_cpus=2, nr_vmas=2048)
    machine.mm["mm_users"] = 2
    assert machine.run("map_anchors", FIRST, STRIDES) == 0
    reader = machine.segment.cpus[1]

    def raced() -> bool:
        assert links_stay_in_the_slab(machine)
        return reader["operations"] >= PROBES and reader["progress"] >= PROBES

    with machine.workers() as workers:
        workers.start(1, "probe_loop", machine.cpu(1), FIRST, STRIDES - 1)
        workers.start(0, "churn", machine.cpu(0), FIRST, STRIDES - 1, 20)
        workers.wait_until(raced)
        machine.segment.system["stop"] = 1
        assert workers.join() == {0: 0, 1: 0}
    check_tree(machine)
    machine.close()


def test_writers_take_turns_and_leave_tree_and_slabs_in_order():
    machine = VmaMachine(nr_cpus=2, nr_vmas=2048)
    machine.mm["mm_users"] = 2
    assert machine.run("map_anchors", FIRST, STRIDES) == 0
    with machine.workers() as workers:
        for cpu in (0, 1):
            workers.start(cpu, "churn", machine.cpu(cpu), FIRST, STRIDES - 1, 0)
        workers.wait_until(
            lambda: min(machine.event(cpu, Event.CALL_MMAP) for cpu in (0, 1)) > CALLS
        )
        machine.segment.system["stop"] = 1
        assert workers.join() == {0: 0, 1: 0}
    check_tree(machine)
    check_slabs(machine)
    machine.close()


def test_without_the_sequence_check_walks_are_wrong():
    """The same race with readers that trust every answer: sooner or later one is wrong."""
    machine = VmaMachine(layer="blind", nr_cpus=2, nr_vmas=2048)
    machine.mm["mm_users"] = 2
    assert machine.run("map_anchors", FIRST, STRIDES) == 0
    with machine.workers() as workers:
        workers.start(0, "churn", machine.cpu(0), FIRST, STRIDES - 1, 0)
        workers.start(1, "probe_loop", machine.cpu(1), FIRST, STRIDES - 1)
        workers.wait_until(lambda: workers.finished(1))
        machine.segment.system["stop"] = 1
        assert workers.join() == {0: 0, 1: -Errno.EFAULT}
    machine.close()
