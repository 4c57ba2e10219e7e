# SPDX-License-Identifier: MIT
"""Every check of what processes share reports what it is there for, and nothing else does."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from corruption import Corruptions
from corruption import check_reported as check_good_reported
from good_segment import FIXED, MODULES, READ_WRITE

from spfemu.checks import check_segment
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.layout import ANON_VMA_CHAIN, PAGE_SIZE, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, Pte
from spfemu.protocols import spf
from spfemu.segment import Geometry, Segment

AREA = 1 << 40
CHAIN = {f.name: f.offset // WORD for f in ANON_VMA_CHAIN.FIELDS}


class Family:
    """Two CPUs: CPU 0 runs a process of one area of four pages, CPU 1 its child."""

    def __init__(self, engine: PlainEngine, segment: Segment) -> None:
        self.engine, self.segment = engine, segment
        segment.mms["mm_users"][0] = 1
        segment.mms["cpumask"][0, 0] = 0b11
        assert self.on(0, "sys_mmap", AREA, 4 * PAGE_SIZE, READ_WRITE, FIXED) == AREA
        for page in range(4):
            assert self.on(0, "user_write", AREA + page * PAGE_SIZE, page) == 0
        child = self.on(0, "sys_fork")
        assert child > 0
        self.on(1, "switch_mm", child)
        assert self.on(1, "user_write", AREA, 9) == 0
        self.on(0, "rcu_barrier")
        self.copy = segment.words.copy()

    def on(self, index: int, name: str, *arguments: int) -> Any:
        cpu = self.segment.cpu(index)
        self.engine.call("cpu_idle_exit", cpu)
        result = self.engine.call(name, cpu, *arguments)
        self.engine.call("cpu_idle_enter", cpu)
        return result

    def restore(self) -> None:
        self.segment.words[:] = self.copy

    def vma(self, mm: int) -> Any:
        """The VMA of a process, as a record."""
        vmas = self.segment.vmas
        (index,) = np.flatnonzero(
            (vmas["vm_mm"] == self.segment.mm(mm)) & (vmas["slab_state"] == 1)
        )
        return vmas[index]

    def anon_vma(self, mm: int) -> Any:
        """The anon_vma of a process's own pages."""
        start = self.segment.address["anon_vmas"]
        anon_vmas = self.segment.anon_vmas
        return anon_vmas[(int(self.vma(mm)["anon_vma"]) - start) // anon_vmas.dtype.itemsize]

    def inherited(self) -> Any:
        """The child's chain to its parent's anon_vma."""
        return self.segment.avcs[int(np.flatnonzero(self.segment.avcs["anon_vma"])[0])]

    def pte(self, mm: int, page: int) -> int:
        """Index in `segment.words` of a pte."""
        table = int(self.segment.mms["pgd"][mm])
        address = AREA + page * PAGE_SIZE
        for shift in (39, 30, 21):
            slot = table + ((address >> shift) & 511) * WORD
            table = self.segment.word(slot) & PTE_ADDR_MASK
        return (table + ((address >> 12) & 511) * WORD - self.segment.base) // WORD


@pytest.fixture(scope="module")
def built() -> Iterator[Family]:
    kernel = [functions_of(import_module("spfemu.mm." + name)) for name in MODULES]
    engine = PlainEngine(link([*kernel, functions_of(spf)], {}))
    made = Family(engine, Segment.create(Geometry(nr_cpus=2, nr_spare_mms=3, nr_avcs=8)))
    yield made
    made.segment.close()


@pytest.fixture
def family(built: Family) -> Iterator[Family]:
    yield built
    built.restore()


corruptions = Corruptions()


@corruptions.reports(
    "^mm 0: the pte of 0x10000001000 is writable, but frame .* is mapped by 2 ptes$"
)
def shared_page_writable(family: Family) -> None:
    family.segment.words[family.pte(0, 1)] |= int(Pte.RW)


@corruptions.reports("^mm 0: frame .*, mapped at 0x10000001000, has mapping 0x.* instead of 0x.*$")
def page_of_no_ancestor(family: Family) -> None:
    """The child's pages are none that its parent may map."""
    segment = family.segment
    entry = int(segment.words[family.pte(1, 0)]) & PTE_ADDR_MASK
    child = int(segment.pages["mapping"][(entry - segment.address["frames"]) // PAGE_SIZE])
    entry = int(segment.words[family.pte(0, 1)]) & PTE_ADDR_MASK
    segment.pages["mapping"][(entry - segment.address["frames"]) // PAGE_SIZE] = child


@corruptions.reports("^anon_vma .* has refcount 4, but 2 VMAs point at it and 1 anon_vmas descend")
def refcount_of_an_ancestor(family: Family) -> None:
    family.anon_vma(0)["refcount"] += 1


@corruptions.reports("^anon_vma .* has degree 3 instead of 2$")
def degree_wrong(family: Family) -> None:
    family.anon_vma(0)["degree"] += 1


@corruptions.reports(r"^anon_vma .* has root 0x.* and parent 0x0$", "has degree 2 instead of 1$")
def parent_lost(family: Family) -> None:
    family.anon_vma(1)["parent"] = 0


@corruptions.reports("^the lock of anon_vma .* is held by CPU 1$")
def anon_vma_locked(family: Family) -> None:
    family.anon_vma(0)["lock"] = 2


@corruptions.reports("^the list of anon_vma .* leads to 0x77, no chain of a VMA or one a second")
def chain_list_astray(family: Family) -> None:
    family.anon_vma(0)["head"] = 0x77


@corruptions.reports("^the list of anon_vma .* has 0 chains, but 2 lead to it$")
def chain_list_cut(family: Family) -> None:
    family.anon_vma(0)["head"] = 0


@corruptions.reports("^the chain at 0x.* of anon_vma .* has prev 0x5 instead of 0x0$")
def chain_prev_wrong(family: Family) -> None:
    family.vma(1)["avc"][CHAIN["prev"]] = 5


@corruptions.reports("^the chain at 0x.* of the chains of VMA .* names VMA 0x7$")
def chain_of_another_vma(family: Family) -> None:
    family.inherited()["vma"] = 7


@corruptions.reports(
    "^VMA .* points at anon_vma 0x.*, but is linked to 0x.*$",
    "has degree 2 instead of 3$",
    "has degree 1 instead of 0$",
    "^mm 1: frame .*, mapped at 0x10000000000, has mapping",
)
def points_elsewhere(family: Family) -> None:
    family.vma(1)["anon_vma"] = family.vma(0)["anon_vma"]


@corruptions.reports("^anon_vma_chain .* is lost: no VMA has it and it is not free$")
def chain_lost(family: Family) -> None:
    system, avcs = family.segment.system, family.segment.avcs
    start = family.segment.address["avcs"]
    system["avc_free"] = avcs["same_vma"][(int(system["avc_free"]) - start) // avcs.dtype.itemsize]


@corruptions.reports("^anon_vma .* is free, but has chains or a parent$")
def free_anon_vma_with_parent(family: Family) -> None:
    anon_vmas = family.segment.anon_vmas
    anon_vmas["parent"][int(np.flatnonzero(anon_vmas["in_use"] == 0)[0])] = 5


@corruptions.reports("^mm 1 at 0x.* is free and in use$")
def mm_free_and_in_use(family: Family) -> None:
    segment = family.segment
    segment.mms["next_free"][1] = segment.system["mm_free"]
    segment.system["mm_free"] = segment.mm(1)


@corruptions.reports("^mm 2 at 0x.* is lost: neither free nor in use$")
def mm_lost(family: Family) -> None:
    family.segment.system["mm_free"] = family.segment.mm(3)


@corruptions.reports("^CPU 1 is in the cpumask of mm 0, but does not run it$")
def cpumask_keeps_a_cpu_that_left(family: Family) -> None:
    family.segment.mms["cpumask"][0, 0] |= 2


@corruptions.reports("^mm_slots_lock is held by CPU 0$")
def mm_slots_locked(family: Family) -> None:
    family.segment.system["mm_slots_lock"] = 1


def test_a_family_is_good(family: Family) -> None:
    assert check_segment(family.segment) == []


@corruptions.parametrize
def test_reported(
    family: Family, corrupt: Callable[[Any], None], patterns: tuple[str, ...]
) -> None:
    check_good_reported(family, corrupt, patterns)  # type: ignore[arg-type]
