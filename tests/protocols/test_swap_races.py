# SPDX-License-Identifier: MIT
"""Faults, forks and unmaps that meet reclaim or each other on one page, under each protocol.

A and B are threads of one process on CPUs 0 and 1; CPU 2 prepares and checks, and plays the child.
After each script all invariants hold: no slot or frame is lost, all counts are those of the ptes.
"""

import pytest
from protocol_sets import GUARDED, SPECULATIVE

from spfemu.checks import check_segment
from spfemu.engines.script import after, before
from spfemu.mm.flags import PTE_ADDR_MASK, Madv
from spfemu.mm.swapops import SWAP_ENTRY, SWAP_ENTRY_BITS
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
PAGE = AREA + 4096
NR_SWAP = 300


class Swapping(Process):
    """A process with a page at PAGE and a swap area."""

    def begin(self, seed: int = 1) -> None:
        super().begin(seed)
        self.map(AREA, 16)
        self.write(AREA, 1)
        self.write(PAGE, 2)
        self.parent = self.segment.mm(0)

    def page_out(self) -> None:
        assert self.call("advise", PAGE, 4096, Madv.PAGEOUT) == 0
        assert self.swapped()

    def pte(self) -> int:
        table = int(self.segment.mms["pgd"][0])
        for shift in (39, 30, 21, 12):
            entry = self.segment.word(table + ((PAGE >> shift) & 511) * 8)
            table = entry & ((1 << 52) - 4096)
        return entry

    def swapped(self) -> bool:
        return self.pte() & SWAP_ENTRY_BITS == SWAP_ENTRY

    def free_slots(self) -> int:
        return int(self.segment.swap_clusters["nr_free"].sum())

    def child_reads(self, child: int, address: int) -> int:
        self.engine.call("switch_mm", self.segment.cpu(2), child)
        value = self.read(address)
        self.engine.call("switch_mm", self.segment.cpu(2), self.parent)
        return value


@pytest.fixture(params=GUARDED)
def process(engine_of, request):
    """A process under each protocol."""
    geometry = Geometry(nr_cpus=3, nr_frames=600, nr_swap=NR_SWAP, nr_spare_mms=2)
    segment = Segment.create(geometry)
    made = Swapping(engine_of(request.param), segment)
    made.protocol = request.param
    yield made
    assert check_segment(segment) == []
    segment.close()


@pytest.fixture
def threads(process):
    with Threads(process) as script:
        yield script


def test_who_may_bring_a_page_back(process, threads):
    process.page_out()
    assert threads.thread("A", "write", PAGE + 8, 7).runs_to_end() == 0
    events = process.events(0)
    if process.protocol in SPECULATIVE:
        assert process.aborts() == {"SWAP": 1}
    elif process.protocol == "vma-lock":
        assert process.vma_lock() == {"RETRY": 1}
    elif process.protocol == "vma-refcount":
        assert process.vma_lock() == {"SUCCESS": 1}
    assert events.get("FAULT_CLASSIC", 0) == (process.protocol != "vma-refcount")
    assert (events["PSWPIN"], events["PGMAJFAULT"]) == (1, 1)
    assert (process.read(PAGE), process.read(PAGE + 8)) == (2, 7)
    assert process.free_slots() == NR_SWAP


def test_a_fault_while_the_page_is_being_unmapped(process, threads):
    """The pte is empty for a moment; with it, and its lock taken, nobody may fill it."""
    evicts = threads.thread("B", "advise", PAGE, 4096, Madv.PAGEOUT)
    writes = threads.thread("A", "write", PAGE + 8, 7)
    evicts.runs_until(before("flush_tlb_mm", inside="try_to_unmap_pte"))
    assert process.pte() == 0
    assert writes.runs_to_end(letting=[evicts]) == 0
    evicts.runs_to_end()

    assert (process.read(PAGE), process.read(PAGE + 8)) == (2, 7)


def test_a_fault_while_the_page_is_being_written(process, threads):
    """The page is found in the swap cache and locked: the fault waits, and the page stays."""
    evicts = threads.thread("B", "advise", PAGE, 4096, Madv.PAGEOUT)
    writes = threads.thread("A", "write", PAGE + 8, 7)
    evicts.runs_until(after("swap_writepage"))
    assert writes.runs_to_end(letting=[evicts]) == 0
    evicts.runs_to_end()

    assert process.events(0)["SWAP_CACHE_HIT"] >= 1
    assert (process.read(PAGE), process.read(PAGE + 8)) == (2, 7)


def test_a_copy_while_the_page_is_being_evicted(process, threads):
    """A's reference keeps the page in memory; its gate finds an entry where the pte was."""
    child = process.call("fork")
    process.call("reclaim")  # takes the accessed bits
    copies = threads.thread("A", "write", PAGE, 7)
    evicts = threads.thread("B", "reclaim")
    copies.runs_until(after("spin_unlock", inside="do_wp_page"))
    evicts.runs_to_end(letting=[copies])
    assert copies.runs_to_end() == 0

    assert process.read(PAGE) == 7
    assert process.child_reads(child, PAGE) == 2


def test_a_page_that_is_pinned_while_it_is_being_evicted_stays(process, threads):
    """Else the next write would be to a copy, and the device goes on with the old frame."""
    evicts = threads.thread("B", "advise", PAGE, 4096, Madv.PAGEOUT)
    pins = threads.thread("A", "pin", PAGE, 1)
    evicts.runs_until(after("add_to_swap"))
    assert pins.runs_to_end() == 1
    evicts.runs_to_end()
    frame = process.pte() & PTE_ADDR_MASK
    process.write(PAGE, 42)
    process.engine.call("dma_write", process.segment.cpu(0), 0, 77)

    assert process.read(PAGE) == 77
    assert process.pte() & PTE_ADDR_MASK == frame
    assert process.call("unpin", cpu=0) == 0


def test_unmapping_while_the_page_is_being_read(process, threads):
    """The last entry goes while the page is locked: whoever has it locked lets it go."""
    process.page_out()
    reads = threads.thread("A", "read", PAGE)
    zaps = threads.thread("B", "dontneed", PAGE, 4096)
    reads.runs_until(after("swap_readpage"))
    zaps.runs_to_end(letting=[reads])
    assert reads.runs_to_end() in ((0, 0), (0, 2))

    assert process.free_slots() == NR_SWAP
    assert process.read(PAGE) == 0


def test_unmapping_while_the_page_is_being_evicted(process, threads):
    evicts = threads.thread("B", "advise", PAGE, 4096, Madv.PAGEOUT)
    zaps = threads.thread("A", "dontneed", PAGE, 4096)
    evicts.runs_until(after("swap_writepage"))
    zaps.runs_to_end(letting=[evicts])
    evicts.runs_to_end()

    assert process.free_slots() == NR_SWAP
    assert process.read(PAGE) == 0


def test_two_bring_back_the_same_page(process, threads):
    process.page_out()
    first = threads.thread("A", "read", PAGE)
    second = threads.thread("B", "write", PAGE + 8, 7)
    first.runs_until(before("swap_cache_add"))
    assert second.runs_to_end(letting=[first]) == 0
    assert first.runs_to_end() == (0, 2)

    assert process.events(0).get("PSWPIN", 0) + process.events(1).get("PSWPIN", 0) == 1
    assert (process.read(PAGE), process.read(PAGE + 8)) == (2, 7)


def test_a_fork_while_the_page_is_being_evicted(process, threads):
    """A fork comes between the slot and the unmapping: both processes get an entry."""
    process.call("reclaim")  # takes the accessed bits
    evicts = threads.thread("B", "reclaim")
    forks = threads.thread("A", "fork")
    evicts.runs_until(before("try_to_unmap"))
    child = forks.runs_to_end(letting=[evicts])
    assert child > 0
    evicts.runs_to_end()

    assert process.read(PAGE) == 2
    assert process.child_reads(child, PAGE) == 2


def test_a_fork_of_what_is_swapped_while_it_comes_back(process, threads):
    process.page_out()
    reads = threads.thread("A", "write", PAGE + 8, 7)
    forks = threads.thread("B", "fork")
    reads.runs_until(before("map_swap_page"))
    forks.runs_until(before("copy_page_range"), letting=[reads])
    child = forks.runs_to_end(letting=[reads])
    assert reads.runs_to_end() == 0

    assert (process.read(PAGE), process.read(PAGE + 8)) == (2, 7)
    assert process.child_reads(child, PAGE) == 2


def test_rights_change_while_the_page_comes_back(process, threads):
    process.page_out()
    reads = threads.thread("A", "read", PAGE)
    protects = threads.thread("B", "mprotect", AREA, 16 << 12, RW & 1)
    reads.runs_until(after("swap_readpage"))
    assert protects.runs_to_end(letting=[reads]) == 0
    assert reads.runs_to_end() == (0, 2)
    assert process.call("write", PAGE, 1) < 0
    assert process.read(PAGE) == 2
