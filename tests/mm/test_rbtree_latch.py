# SPDX-License-Identifier: MIT
"""Latched lookups: at every step of a change of the tree, what stays mapped is found.

The rules of both copies are tested with those of the one tree, in test_rbtree.py.
"""

import pytest
from vmas import VmaMachine, check_tree, engine

from spfemu.engines.script import Script, after
from spfemu.layout import PAGE_SIZE

KEYS = (7, 3, 11, 1, 5, 9, 13, 0, 2, 4, 6, 8, 10, 12)
"""Inserted and then erased in this order: rotations of every kind on the way."""


def page(number: int) -> int:
    return (1 + number) * PAGE_SIZE


class Tree:
    """A tree that a stepped writer changes; VMAs of one page at every other page."""

    def __init__(self, latch: int) -> None:
        self.machine = VmaMachine(nr_cpus=2, nr_vmas=64, latch=latch)
        self.slots: dict[int, int] = {}

    def changes(self):
        """Yield a writer about to make each change, with the VMAs that stay; then let it end."""
        machine = self.machine
        for key in (*KEYS, *KEYS):
            call = ("tree_insert", page(2 * key), page(2 * key + 1))
            if key in self.slots:
                call = ("tree_erase", self.slots.pop(key))
            with Script(engine("stepped", latch=machine.latch), machine.segment) as script:
                writer = script.cpu("W", call[0], machine.cpu(0), machine.segment.mm(0), *call[1:])
                yield script, writer
                writer.runs_to_end()
                if call[0] == "tree_insert":
                    self.slots[key] = writer.result
            check_tree(machine)

    def missed(self) -> list[int]:
        """Keys of VMAs that stay and that a lookup does not find now."""
        machine, mm = self.machine, self.machine.segment.mm(0)
        return [
            key
            for key, slot in self.slots.items()
            if machine.call("vma_rb_lookup", mm, page(2 * key)) != slot
        ]


@pytest.fixture(params=[0, 1], ids=["walk", "latch"])
def tree(request):
    made = Tree(request.param)
    yield made
    made.machine.close()


def test_lookups_between_all_steps_of_a_change(tree):
    """A walk of the one tree misses what is below a rotation; the latched one misses nothing."""
    misses = 0
    for _, writer in tree.changes():
        while not writer.done:
            misses += len(tree.missed())
            writer.takes_steps(1)
    assert (misses == 0) is bool(tree.machine.latch)


def test_a_writer_that_comes_during_a_lookup_sends_it_round_again():
    tree = Tree(latch=1)
    machine, mm = tree.machine, tree.machine.segment.mm(0)
    for script, writer in tree.changes():
        if not tree.slots:
            continue
        key = min(tree.slots)
        reader = script.cpu("R", "vma_rb_lookup", mm, page(2 * key))
        # the first copy is at rest, and what the reader has read of it changes twice
        reader.runs_until(after("read_once", inside="vma_rb_walk", nth=2))
        writer.runs_to_end()
        assert reader.runs_to_end() == tree.slots[key]
    machine.close()


@pytest.mark.parametrize("seed", range(8))
def test_lookups_in_random_order_with_a_change(seed):
    tree = Tree(latch=1)
    mm = tree.machine.segment.mm(0)
    for script, writer in tree.changes():
        key = max(tree.slots, default=None)
        if key is None:
            continue
        reader = script.cpu("R", "vma_rb_lookup", mm, page(2 * key))
        script.runs_randomly(seed)
        assert writer.done
        assert reader.result == tree.slots[key], f"seed {seed}"
    tree.machine.close()


def test_the_latch_counts_two_for_each_change():
    machine = VmaMachine(nr_vmas=16, latch=1)
    mm = machine.segment.mm(0)
    vma = machine.run("tree_insert", mm, page(1), page(2))
    assert machine.mm["mm_rb_seq"] == 2
    machine.run("tree_erase", mm, vma)
    assert machine.mm["mm_rb_seq"] == 4
    assert machine.mm["mm_rb_latch"] == machine.mm["mm_rb"] == 0
    machine.close()
