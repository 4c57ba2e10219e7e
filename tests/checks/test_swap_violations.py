# SPDX-License-Identifier: MIT
"""Every check of swapped memory reports what it is there for, and nothing else does."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
from corruption import Corruptions
from corruption import check_reported as check_good_reported
from good_segment import FIXED, MODULES, READ_WRITE

from spfemu.checks import check_segment
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.layout import PAGE, PAGE_SHIFT, PAGE_SIZE, SWAP_SLOT, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, Madv, Pg
from spfemu.protocols import classic
from spfemu.segment import Geometry, Segment

AREA = 1 << 40
NR_SWAP = 300
"""A whole cluster and a small one."""


class Swapped:
    """A process of six pages: 0 is mapped and in the cache, 1 in the cache, 2 and 3 swapped out."""

    def __init__(self, engine: PlainEngine, segment: Segment) -> None:
        self.engine, self.segment = engine, segment
        segment.mms["mm_users"][0] = 1
        segment.mms["cpumask"][0, 0] = 1
        assert self.on("sys_mmap", AREA, 6 * PAGE_SIZE, READ_WRITE, FIXED) == AREA
        for page in range(6):
            assert self.on("user_write", AREA + page * PAGE_SIZE, page) == 0
        assert self.on("sys_madvise", AREA, 4 * PAGE_SIZE, Madv.PAGEOUT) == 0
        assert self.on("user_read", AREA) == (0, 0)
        assert self.on("sys_madvise", AREA + PAGE_SIZE, PAGE_SIZE, Madv.WILLNEED) == 0
        self.copy = segment.words.copy()

    def on(self, name: str, *arguments: int) -> Any:
        cpu = self.segment.cpu(0)
        self.engine.call("cpu_idle_exit", cpu)
        result = self.engine.call(name, cpu, *arguments)
        self.engine.call("cpu_idle_enter", cpu)
        return result

    def restore(self) -> None:
        self.segment.words[:] = self.copy

    def pte(self, page: int) -> int:
        """Index in `segment.words` of a pte."""
        table = int(self.segment.mms["pgd"][0])
        address = AREA + page * PAGE_SIZE
        for shift in (39, 30, 21):
            slot = table + ((address >> shift) & 511) * WORD
            table = self.segment.word(slot) & PTE_ADDR_MASK
        return (table + ((address >> 12) & 511) * WORD - self.segment.base) // WORD

    def slot(self, index: int) -> int:
        """Address of a slot."""
        return self.segment.address["swap_slots"] + index * SWAP_SLOT.SIZE

    def cached(self, slot: int) -> Any:
        """PAGE that the cache has for a slot."""
        page = int(self.segment.swap_slots["page"][slot])
        return self.segment.pages[(page - self.segment.address["vmemmap"]) // PAGE.SIZE]


@pytest.fixture(scope="module")
def built() -> Iterator[Swapped]:
    kernel = [functions_of(import_module("spfemu.mm." + name)) for name in MODULES]
    engine = PlainEngine(link([*kernel, functions_of(classic)], {}))
    made = Swapped(engine, Segment.create(Geometry(nr_swap=NR_SWAP)))
    yield made
    made.segment.close()


@pytest.fixture
def swapped(built: Swapped) -> Iterator[Swapped]:
    yield built
    built.restore()


corruptions = Corruptions()


@corruptions.reports("^swap slot 2 at .* counts 2 ptes, but 1 hold its entry$")
def count_too_high(swapped: Swapped) -> None:
    swapped.segment.swap_slots["count"][2] = 2


@corruptions.reports(
    "^swap slot 2 at .* counts 1 ptes, but 2 hold its entry$",
    "^swap slot 3 at .* counts 1 ptes, but 0 hold its entry$",
)
def entry_of_another_slot(swapped: Swapped) -> None:
    words = swapped.segment.words
    words[swapped.pte(3)] = words[swapped.pte(2)]


@corruptions.reports(
    "^mm 0: the pte of 0x10000003000 .* names no swap slot$",
    "^swap slot 3 at .* counts 1 ptes, but 0 hold its entry$",
)
def entry_beyond_the_area(swapped: Swapped) -> None:
    swapped.segment.words[swapped.pte(3)] += NR_SWAP << PAGE_SHIFT


@corruptions.reports(
    "^swap_ents of mm 0 is 3, but 2 ptes hold swap entries$",
    "^swap slot 2 at .* counts 1 ptes, but 0 hold its entry$",
)
def entry_lost(swapped: Swapped) -> None:
    swapped.segment.words[swapped.pte(2)] = 0


@corruptions.reports("^swap_ents of mm 0 is 4, but 3 ptes hold swap entries$")
def entries_miscounted(swapped: Swapped) -> None:
    swapped.segment.mms["swap_ents"][0] += 1


@corruptions.reports("^mm 0: the swap entry of 0x10000006000 lies in no VMA$")
def entry_outside(swapped: Swapped) -> None:
    words = swapped.segment.words
    words[swapped.pte(6)], words[swapped.pte(2)] = words[swapped.pte(2)], 0


@corruptions.reports(
    "^swap slot 1 at .* has 0x1234 as its page, which is none$",
    "^frame .* says that it is in the swap cache, and no slot has it$",
    "^frame .* is lost: ",
)
def cache_astray(swapped: Swapped) -> None:
    swapped.segment.swap_slots["page"][1] = 0x1234


@corruptions.reports("^frame .* is in the swap cache for swap slot 1 at .*, but names entry 0x")
def page_names_another_slot(swapped: Swapped) -> None:
    swapped.cached(1)["private"] += PAGE_SIZE


@corruptions.reports("^frame .* is in the swap cache and does not say so$")
def page_denies_it(swapped: Swapped) -> None:
    swapped.cached(0)["flags"] &= ~int(Pg.SWAPCACHE)


@corruptions.reports(
    "^frame .* is in the swap cache, and no page table leads to it$",
    "^swap_ents of mm 0 is 3, but 2 ptes hold swap entries$",
)
def page_forgotten(swapped: Swapped) -> None:
    swapped.segment.words[swapped.pte(1)] = 0
    swapped.segment.swap_slots["count"][1] = 0


@corruptions.reports("^frame .* has refcount 3 instead of 2 .owner: page tables that map it.$")
def reference_kept(swapped: Swapped) -> None:
    swapped.cached(0)["refcount"] += 1


@corruptions.reports("^frame .* is locked .PG_locked.$")
def page_left_locked(swapped: Swapped) -> None:
    swapped.cached(1)["flags"] |= int(Pg.LOCKED)


@corruptions.reports(
    "^the free list of swap cluster 1 holds 43 slots, but counts 44$",
    "^swap slot 256 at .* is lost: nobody holds it, and it is not free$",
)
def slot_lost(swapped: Swapped) -> None:
    swapped.segment.swap_clusters["free"][1] = swapped.slot(257)


@corruptions.reports(
    "^the free list of swap cluster 0 holds 253 slots, but counts 252$",
    "^swap slot 2 at .* is on the free list of swap cluster 0 and in use or another's$",
)
def slot_in_use_is_free(swapped: Swapped) -> None:
    clusters, slots = swapped.segment.swap_clusters, swapped.segment.swap_slots
    slots["next"][2] = clusters["free"][0]
    clusters["free"][0] = swapped.slot(2)


@corruptions.reports(
    "^the free list of swap cluster 1 leads from swap slot 299 at .* to what is no swap slot$"
)
def list_astray(swapped: Swapped) -> None:
    swapped.segment.swap_slots["next"][299] = 0x1238


@corruptions.reports("^swap cluster 0 is held by CPU 0$")
def cluster_locked(swapped: Swapped) -> None:
    swapped.segment.swap_clusters["lock"][0] = 1


def test_good(swapped: Swapped) -> None:
    assert check_segment(swapped.segment) == []
    assert swapped.segment.swap_slots["count"][:4].tolist() == [0, 1, 1, 1]
    assert (swapped.segment.swap_slots["page"][:4] != 0).tolist() == [True, True, False, False]


@corruptions.parametrize
def test_reported(
    swapped: Swapped, corrupt: Callable[..., None], patterns: tuple[str, ...]
) -> None:
    check_good_reported(swapped, corrupt, patterns)
