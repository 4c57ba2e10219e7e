# SPDX-License-Identifier: MIT
"""NUMA hinting under every protocol: scans, faults, pages that move, and all that comes between.

CPUs 0 and 2 are on node 0, CPU 1 is on node 1; C prepares, scans and checks.
"""

import functools
import random
import sys

import pytest
from mutants import mutant_engine
from protocol_sets import GUARDED, SPECULATIVE

from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.engines.script import after, before
from spfemu.engines.source import functions_of
from spfemu.engines.stepped import StepEngine
from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.mm.flags import PMD_SIZE, PTE_ADDR_MASK, Errno, Prot, Pte
from spfemu.mm.mcopy import UffdCopy
from spfemu.mm.pgtable import find_pmd, pte_offset
from spfemu.primitives import load, read_once
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads, program
from spfemu.stress.schedules.served import WP

AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
PAGES = 16
EFAULT = int(Errno.EFAULT)
FIRST_GATE, SECOND_GATE = "pte_spinlock", "migrate_misplaced_page"


@kernel
def entry_of(cpu: int, address: int) -> int:
    """Entry of an address whose page table is there."""
    return read_once(pte_offset(read_once(find_pmd(load(cpu + CPU.mm), address)), address))


LAYER = functions_of(sys.modules[__name__])
GEOMETRY = Geometry(nr_cpus=3, nr_spare_mms=2, nr_nodes=2)


@functools.cache
def stepped(protocol):
    return StepEngine(program(protocol, layer=LAYER, CONFIG_NUMA=1))


@functools.cache
def native(protocol):
    return NativeEngine(program(protocol, layer=LAYER, CONFIG_NUMA=1))


class Nodes(Process):
    """A process on a machine of two nodes, with a page of node 0 at PAGE."""

    def prepares(self):
        self.map(AREA, PAGES)
        self.write(AREA, 1)
        self.write(PAGE, 2)

    def scans(self):
        assert self.call("scan") == 0

    def entry(self, address=PAGE):
        return self.engine.call("entry_of", self.segment.cpu(2), address)

    def node(self, address=PAGE):
        frame = ((self.entry(address) & PTE_ADDR_MASK) - self.segment.address["frames"]) >> 12
        return frame // self.segment.geometry.frames_per_node

    def page(self, address=PAGE):
        frame = ((self.entry(address) & PTE_ADDR_MASK) - self.segment.address["frames"]) >> 12
        return self.segment.pages[frame]


@pytest.fixture(params=GUARDED)
def protocol(request):
    return request.param


@pytest.fixture
def nodes(own_cache, protocol):
    made = Nodes(stepped(protocol), Segment.create(GEOMETRY))
    made.prepares()
    yield made
    assert check_segment(made.segment) == []
    made.segment.close()


@pytest.fixture
def threads(nodes):
    with Threads(nodes) as script:
        yield script


def hints(process, cpu):
    names = ("NUMA_HINT_FAULTS", "NUMA_HINT_FAULTS_LOCAL", "NUMA_PAGE_MIGRATED")
    return tuple(process.events(cpu).get(name, 0) for name in names)


def pinned_word(process):
    """The first word of the frame that A has pinned, as its device sees it."""
    page = int(process.segment.cpus["gup_pages"][0][0])
    number = (page - process.segment.address["vmemmap"]) // 64
    return process.segment.word(process.segment.address["frames"] + number * 4096)


# Hinting faults


def test_a_scan_takes_the_access_and_a_fault_gives_it_back(nodes, threads):
    before_scan = nodes.entry()
    nodes.scans()
    assert nodes.entry() & (Pte.PRESENT | Pte.PROTNONE) == Pte.PROTNONE
    assert nodes.events(2)["NUMA_PTE_UPDATES"] == 2

    assert threads.thread("A", "read", PAGE).runs_to_end() == (0, 2)

    assert nodes.entry() | Pte.ACCESSED == before_scan | Pte.ACCESSED
    assert hints(nodes, 0) == (1, 1, 0)
    assert nodes.node() == 0


def test_the_right_to_write_outlasts_a_scan(nodes, threads):
    nodes.scans()
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == 0
    assert nodes.events(0)["PGFAULT"] == 1
    assert nodes.read(PAGE) == 7


@pytest.mark.parametrize("name", ["read", "write"])
def test_a_page_moves_to_who_uses_it(nodes, threads, name):
    nodes.write(PAGE + 8, 3)
    nodes.scans()
    index, mapping = int(nodes.page()["index"]), int(nodes.page()["mapping"])
    b = threads.thread("B", name, PAGE, *([7] if name == "write" else []))
    assert b.runs_to_end() == (0 if name == "write" else (0, 2))
    assert nodes.node() == 1
    assert (int(nodes.page()["index"]), int(nodes.page()["mapping"])) == (index, mapping)
    assert hints(nodes, 1) == (1, 0, 1)
    assert (nodes.read(PAGE), nodes.read(PAGE + 8)) == (7 if name == "write" else 2, 3)


def test_zero_pages_and_shared_ones_are_left_alone(nodes):
    nodes.read(PAGE + 4096)
    child = nodes.call("fork")
    nodes.scans()
    for address in (AREA, PAGE, PAGE + 4096):
        assert nodes.entry(address) & Pte.PRESENT
    assert child > 0


def test_a_scan_goes_on_where_the_last_one_ended(nodes):
    nodes.map(ELSEWHERE, PAGES)
    nodes.write(ELSEWHERE, 4)
    nodes.segment.mms["numa_scan_offset"] = AREA + (PAGES << 12)
    nodes.scans()
    assert nodes.entry(ELSEWHERE) & Pte.PROTNONE
    assert nodes.entry(AREA) & Pte.PRESENT
    assert nodes.segment.mms["numa_scan_offset"][0] == 0
    nodes.scans()
    assert nodes.entry(AREA) & Pte.PROTNONE


def test_a_scan_does_not_wait_for_a_writer(nodes, threads):
    b = threads.thread("B", "mmap", ELSEWHERE, 4096, RW, FIXED)
    b.runs_until(after("mmap_write_lock_killable"))
    nodes.scans()
    assert nodes.entry() & Pte.PRESENT
    b.runs_to_end()


# Speculation


@pytest.mark.parametrize("protocol", SPECULATIVE, indirect=True)
def test_hinting_faults_speculate(nodes, threads):
    nodes.scans()
    b = threads.thread("B", "write", PAGE, 7)
    assert b.runs_to_end() == 0
    assert nodes.aborts(1) == {}
    assert nodes.events(1)["SPF_ATTEMPT_NUMA"] == 1
    assert "FAULT_CLASSIC" not in nodes.events(1)
    assert nodes.node() == 1


@pytest.mark.parametrize(
    ("point", "reason", "moved"),
    [
        (after("mmap_seq_read_start"), "VMA_COPY", 1),
        (after("mmap_seq_read_check"), "PTE_MAP_LOCK_SEQ1", 1),
        (after("mmap_seq_read_check", inside=FIRST_GATE), "PTE_MAP_LOCK_SEQ2", 1),
        (after("spin_trylock", inside=FIRST_GATE), "PTE_MAP_LOCK_SEQ2", 1),
        (after("get_page", inside="do_numa_page"), "PTE_MAP_LOCK_SEQ1", 0),
        (before("pte_map_lock", inside=SECOND_GATE), "PTE_MAP_LOCK_SEQ1", 0),
        (after("mmap_seq_read_check", inside=SECOND_GATE), "PTE_MAP_LOCK_SEQ2", 0),
        (after("pte_map_lock", inside=SECOND_GATE), None, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("protocol", ["spf"], indirect=True)
def test_a_writer_enters_at_either_gate(nodes, threads, point, reason, moved):
    """Behind the first gate the fault is done; what a second attempt leaves is the move."""
    nodes.scans()
    b = threads.thread("B", "write", PAGE, 7)
    a = threads.thread("A", "mmap", ELSEWHERE, 4096, RW, FIXED)
    b.runs_until(point)
    a.runs_to_end()
    assert b.runs_to_end() == 0
    assert nodes.aborts(1) == ({reason: 1} if reason else {})
    assert nodes.node() == moved
    assert nodes.read(PAGE) == 7


@pytest.mark.parametrize("gate", [before(FIRST_GATE), before("pte_map_lock", inside=SECOND_GATE)])
@pytest.mark.parametrize("protocol", ["spf"], indirect=True)
def test_a_page_table_lock_that_is_held_at_either_gate(nodes, threads, gate):
    nodes.scans()
    b = threads.thread("B", "write", PAGE, 7)
    a = threads.thread("A", "dontneed", AREA, 4096)
    b.runs_until(gate)
    a.runs_until(after("xchg", inside="zap_pte_range"))
    assert b.runs_to_end(letting=[a]) == 0
    a.runs_to_end(letting=[b])
    assert nodes.aborts(1) == {"PTE_MAP_LOCK_PTL": 1}
    assert nodes.read(PAGE) == 7


@pytest.mark.parametrize("protocol", ["spf"], indirect=True)
def test_a_table_unlinked_behind_the_first_check_of_either_gate(nodes, threads):
    nodes.scans()
    b = threads.thread("B", "write", PAGE, 7)
    a = threads.thread("A", "munmap", AREA, PAGES << 12)
    b.runs_until(after("mmap_seq_read_check", inside=SECOND_GATE))
    a.runs_until(after("free_pgtables"))
    assert b.runs_to_end(letting=[a]) == -EFAULT
    a.runs_to_end()
    assert nodes.aborts(1) == {"PTE_MAP_LOCK_PMD": 1}
    nodes.prepares()


# What else may happen to the page meanwhile


@pytest.mark.parametrize("point", [before(FIRST_GATE), before("pte_map_lock", inside=SECOND_GATE)])
def test_the_page_goes_under_the_read_lock(nodes, threads, point):
    nodes.scans()
    b = threads.thread("B", "read", PAGE)
    a = threads.thread("A", "dontneed", PAGE, 4096)
    b.runs_until(point)
    a.runs_until(after("zap_pte_range"))
    assert b.runs_to_end(letting=[a]) in ((0, 0), (0, 2))
    a.runs_to_end()
    assert nodes.read(PAGE) == 0


def test_a_page_that_somebody_refers_to_stays(nodes, threads):
    nodes.scans()
    page = nodes.page()
    page["refcount"] += 1
    assert threads.thread("B", "read", PAGE).runs_to_end() == (0, 2)
    assert hints(nodes, 1) == (1, 0, 0)
    assert nodes.node() == 0
    page["refcount"] -= 1


def test_a_reference_taken_before_the_flush_keeps_the_page(nodes, threads):
    """By a walk without locks; there is none any more once the flush is over."""
    nodes.scans()
    page = nodes.page()
    b = threads.thread("B", "write", PAGE, 7)
    b.runs_until(before("flush_tlb_mm", inside="migrate_page_locked"))
    page["refcount"] += 1
    assert b.runs_to_end() == 0
    assert nodes.node() == 0
    assert nodes.read(PAGE) == 7
    page["refcount"] -= 1


def stale_store(engine):
    """B moves a page while C writes to it through a translation from just before.

    Returns what C wrote and what is there then.
    """
    process = Nodes(engine, Segment.create(GEOMETRY))
    process.prepares()
    process.write(PAGE + 16, 3)
    process.scans()
    with Threads(process) as threads:
        b = threads.thread("B", "read", PAGE)
        b.runs_until(after("set_pte", inside="do_numa_page"))
        assert process.read(PAGE + 16) == 3
        process.write(PAGE + 16, 4)  # C's translation allows writing now
        c = threads.thread("C", "write", PAGE + 16, 6)
        b.runs_until(after("copy_page"))
        assert c.runs_to_end(letting=[b]) == 0
        assert b.runs_to_end() == (0, 2)
    found = process.read(PAGE + 16)
    assert process.node() == 1
    assert check_segment(process.segment) == []
    process.segment.close()
    return 6, found


def test_no_store_is_lost_to_a_move(own_cache, protocol):
    """The page is copied only once no TLB can write to it any more."""
    written, found = stale_store(stepped(protocol))
    assert found == written


def test_a_move_before_the_flush_loses_a_store(own_cache):
    engine = mutant_engine("spf", "moved_before_the_flush", LAYER, CONFIG_NUMA=1)
    written, found = stale_store(engine)
    assert found != written


def test_fork_of_pages_that_fault_next_time(nodes, threads):
    nodes.scans()
    child = nodes.call("fork")
    assert threads.thread("B", "write", PAGE, 7).runs_to_end() == 0
    cpu = nodes.segment.cpu(2)
    nodes.engine.call("switch_mm", cpu, child)
    assert nodes.read(PAGE) == 2
    nodes.write(AREA, 9)
    nodes.engine.call("switch_mm", cpu, nodes.segment.mm(0))
    assert (nodes.read(PAGE), nodes.read(AREA)) == (7, 1)


def test_protection_wins_over_a_scan(nodes, threads):
    nodes.scans()
    assert nodes.call("mprotect", AREA, PAGES << 12, int(Prot.NONE)) == 0
    assert threads.thread("B", "read", PAGE).runs_to_end() == (-EFAULT, 0)
    nodes.scans()
    assert nodes.call("mprotect", AREA, PAGES << 12, int(Prot.READ)) == 0
    nodes.scans()
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == -EFAULT
    assert nodes.read(PAGE) == 2


def test_dropped_and_unmapped_pages_are_gone(nodes):
    nodes.scans()
    assert nodes.call("dontneed", PAGE, 4096) == 0
    assert nodes.read(PAGE) == 0
    nodes.scans()
    assert nodes.call("munmap", AREA, PAGES << 12) == 0
    nodes.prepares()


def test_a_monitors_protection_outlasts_a_scan(nodes, threads):
    ctx = nodes.call("open")
    assert nodes.call("register", ctx, AREA, PAGES << 12, WP) == 0
    assert nodes.call("writeprotect", ctx, PAGE, 4096, int(UffdCopy.WP)) == 0
    nodes.scans()
    b = threads.thread("B", "read", PAGE)
    assert b.runs_to_end() == (0, 2)
    assert nodes.node() == 1
    assert nodes.entry() & Pte.UFFD_WP
    nodes.call("release", ctx)
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == 0


# Random orders and programs


@pytest.mark.parametrize(
    "beside",
    [
        ("scan",),
        ("write", PAGE + 16, 9),
        ("dontneed", AREA, 4096),
        ("mprotect", AREA, 4096, int(Prot.READ)),
        ("fork",),
    ],
    ids=lambda call: call[0],
)
def test_data_is_kept_in_random_orders(nodes, beside):
    for seed in range(12):
        nodes.begin(seed)
        nodes.prepares()
        nodes.scans()
        with Threads(nodes) as threads:
            a = threads.thread("A", "write", PAGE + 8, 7)
            b = threads.thread("B", "write", PAGE + 24, 8)
            c = threads.thread("C", *beside)
            schedule = threads.runs_randomly(seed)
            assert (a.result, b.result) == (0, 0), (seed, schedule)
            assert c.result >= 0, (seed, schedule)
        assert check_segment(nodes.segment) == [], (seed, schedule)
        found = [nodes.read(PAGE + offset) for offset in (0, 8, 24)]
        assert found == [2, 7, 8], (seed, schedule)


CHOICES = ["write"] * 6 + ["read"] * 4 + ["scan"] * 4 + ["mmap", "munmap", "mprotect", "dontneed"]
FIRST = AREA + PMD_SIZE - (8 << 12)
"""Programs' pages lie across two page tables."""


def do_random_calls(process, seed):
    """Make a program's calls on random CPUs; returns their results and all data at the end."""
    choose = random.Random(seed)
    results = []
    for _ in range(150):
        first, last = sorted(choose.sample(range(PAGES + 1), 2))
        start, length = FIRST + (first << 12), (last - first) << 12
        name = choose.choice(CHOICES)
        arguments = {
            "write": (start, choose.getrandbits(60)),
            "read": (start,),
            "scan": (),
            "mmap": (start, length, choose.choice([RW, RW, int(Prot.READ)]), FIXED),
            "munmap": (start, length),
            "mprotect": (start, length, choose.choice([RW, int(Prot.READ), 0])),
            "dontneed": (start, length),
        }[name]
        results.append((name, process.call(name, *arguments, cpu=choose.randrange(3))))
    assert process.call("mprotect", FIRST, PAGES << 12, RW) in (0, -int(Errno.ENOMEM))
    results += [process.call("read", FIRST + (i << 12)) for i in range(PAGES)]
    return results


@pytest.mark.parametrize("protocol", sorted(set(GUARDED) - {"classic"}))
def test_programs_do_what_they_do_under_classic(own_cache, protocol):
    segment = Segment.create(GEOMETRY)
    moved = 0
    for seed in range(24):
        found = []
        for name in ("classic", protocol):
            process = Nodes(native(name), segment)
            found.append(do_random_calls(process, seed))
            assert check_segment(segment) == [], (name, seed)
            moved += sum(process.events(cpu).get("NUMA_PAGE_MIGRATED", 0) for cpu in range(3))
        assert found[0] == found[1], seed
    assert moved > 0
    segment.close()


# Forks


def test_a_fork_copies_a_pinned_frame_whose_entry_a_scan_has_changed(nodes):
    parent = nodes.segment.mm(0)
    assert nodes.call("pin", PAGE, 1, cpu=0) == 1
    nodes.scans()
    child = nodes.call("fork", cpu=1)
    nodes.write(PAGE, 42)
    seen = pinned_word(nodes)
    assert nodes.call("unpin", cpu=0) == 0
    nodes.engine.call("switch_mm", nodes.segment.cpu(2), child)
    assert nodes.read(PAGE) == 2
    assert nodes.call("exit", parent) == 0
    assert seen == 42
