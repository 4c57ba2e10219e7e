# SPDX-License-Identifier: MIT
"""Every check of huge frames reports what it is there for, and nothing else does."""

from importlib import import_module

import numpy as np
import pytest
from corruption import Corruptions
from corruption import check_reported as check_good_reported
from good_segment import FIXED, MODULES, READ_WRITE

from spfemu.checks import check_segment
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.layout import HUGE_PAGE, PAGE_SIZE, WORD
from spfemu.mm.flags import HPAGE_PMD_NR, PMD_SIZE, PTE_ADDR_MASK, Pg, Pte
from spfemu.protocols import spf
from spfemu.segment import Geometry, Segment

AREA = 1 << 40
SMALL = 256
"""Frames before the huge ones."""


class Huge:
    """A process with two huge pages: the first in use as one, the second split and half gone."""

    def __init__(self) -> None:
        kernel = [functions_of(import_module("spfemu.mm." + name)) for name in MODULES]
        self.engine = PlainEngine(link([*kernel, functions_of(spf)], {}))
        geometry = Geometry(nr_frames=SMALL + 3 * HPAGE_PMD_NR, nr_huge=3)
        self.segment = Segment.create(geometry)
        self.segment.mms["mm_users"][0] = 1
        self.segment.mms["cpumask"][0, 0] = 1
        cpu, call = self.segment.cpu(0), self.engine.call
        call("cpu_idle_exit", cpu)
        assert call("sys_mmap", cpu, AREA, 2 * PMD_SIZE, READ_WRITE, FIXED) == AREA
        for start in (AREA, AREA + PMD_SIZE):
            assert call("user_write", cpu, start, 1) == 0
            assert call("hpage_collapse", cpu, self.segment.mm(0), start, 0) == 0
        assert call("sys_madvise", cpu, AREA + PMD_SIZE, PMD_SIZE // 2, 4) == 0
        call("rcu_barrier", cpu)
        call("cpu_idle_enter", cpu)
        self.copy = self.segment.words.copy()

    def pmd(self) -> int:
        """Index in `segment.words` of the huge entry."""
        slot = self.engine.call("find_pmd", self.segment.mm(0), AREA)
        return (slot - self.segment.base) // WORD

    def holder(self):
        """PAGE of the table that has the huge entry."""
        slot = self.segment.base + self.pmd() * WORD
        return self.segment.pages[(slot - self.segment.address["frames"]) // PAGE_SIZE]

    def frame(self, page: int = 0) -> int:
        """Index of a frame of the huge page."""
        entry = int(self.segment.words[self.pmd()]) & PTE_ADDR_MASK
        return (entry - self.segment.address["frames"]) // PAGE_SIZE + page


@pytest.fixture(scope="module")
def built():
    made = Huge()
    yield made
    made.segment.close()


@pytest.fixture
def huge(built):
    yield built
    built.segment.words[:] = built.copy


corruptions = Corruptions()


@corruptions.reports("^huge frame 0 at .* counts 511 frames in use, but 512 are$")
def live_count(huge):
    huge.segment.huge_pages["live"][0] -= 1


@corruptions.reports("^huge frame 2 at .* is lost$")
def free_list_empty(huge):
    huge.segment.system["huge_free"] = 0


@corruptions.reports("^huge frame 1 at .* is free and in use$")
def free_and_in_use(huge):
    slabs = huge.segment.address["huge_pages"]
    huge.segment.system["huge_free"] = slabs + HUGE_PAGE.SIZE
    huge.segment.huge_pages["next"][1] = slabs + 2 * HUGE_PAGE.SIZE


@corruptions.reports("^the list of free huge frames leads .* to what is no huge frame$")
def free_list_astray(huge):
    huge.segment.huge_pages["next"][2] = 0x77


@corruptions.reports("^frame .* is part of a huge frame, but has flags 0x1$")
def not_marked(huge):
    huge.segment.pages["flags"][huge.frame(3)] &= ~int(Pg.COMPOUND)


@corruptions.reports("^frame 100 at .* is no part of a huge frame, but has flags 0x8000$")
def marked(huge):
    huge.segment.pages["flags"][100] |= int(Pg.COMPOUND)


@corruptions.reports("^frame .* has refcount 2 instead of 1 ")
def reference_to_a_part(huge):
    huge.segment.pages["refcount"][huge.frame(7)] += 1


@corruptions.reports("^mm 0: frame .*, mapped at 0x10000005000, has index ")
def index_of_a_part(huge):
    huge.segment.pages["index"][huge.frame(5)] += 1


@corruptions.reports("^mm 0: the huge entry of 0x10000000000 is bad: 0x")
def bad_bits(huge):
    huge.segment.words[huge.pmd()] |= int(Pte.SPECIAL)


@corruptions.reports(
    "^mm 0: the huge entry of 0x10000000000 is bad: 0x",
    "^mm 0 counts 768 anonymous pages .*, but 256 are mapped",
    *["^frame .* is lost: .* flags 32769, refcount 1, mapcount 1"] * 8,
)
def not_the_first_frame(huge):
    huge.segment.words[huge.pmd()] += PAGE_SIZE


@corruptions.reports(
    "^mm 0: the deposited tables of frame .* are 0, but it has 1 huge entries$",
    "^frame .* is lost: .* flags 2",
    "^pgtables of mm 0 is 5, but it has 4",
)
def table_lost(huge):
    huge.holder()["mapping"] = 0


@corruptions.reports("^the deposited tables of frame .* runs? in a circle through struct page ")
def deposited_in_a_circle(huge):
    table = int(huge.holder()["mapping"])
    index = (table - huge.segment.address["vmemmap"]) // huge.segment.pages.dtype.itemsize
    huge.segment.pages["lru"][index] = table


@corruptions.reports("^huge_lock is held by CPU 0$")
def lock_held(huge):
    huge.segment.system["huge_lock"] = 1


def test_the_segment_is_good(huge):
    assert check_segment(huge.segment) == []
    assert huge.segment.huge_pages["live"].tolist() == [512, 256, 0]
    assert np.count_nonzero(huge.segment.words[huge.pmd()] & int(Pte.PSE)) == 1


@corruptions.parametrize
def test_reported(huge, corrupt, patterns):
    check_good_reported(huge, corrupt, patterns)
