# SPDX-License-Identifier: MIT
"""A fault meets a collapse to a huge page, at every step of either, under each protocol.

A is a thread that writes a page of which nothing is there yet; B collapses the 2 MiB around it; CPU
2 prepares and checks.
"""

import sys

import pytest
from faults import LOCKING, TAKING
from mutants import engine_with
from protocol_sets import GUARDED, VMA_LOCKED

from spfemu.checks import check_segment
from spfemu.engines.script import after, before, waits
from spfemu.engines.source import functions_of
from spfemu.engines.stepped import StepEngine
from spfemu.kernel import kernel
from spfemu.mm.flags import Pte
from spfemu.mm.khugepaged import Scan
from spfemu.mm.sched import cpu_idle_enter, cpu_idle_exit
from spfemu.mm.syscalls import sys_mincore
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules import process
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
PAGES = 512
PAGE = AREA + 4096
ENTERED = after("mmap_seq_write_enter")
CLEARED = after("xchg", inside="pmdp_collapse_flush")
LOOKING = after("spin_lock", inside="hpage_collapse")
GATE = "pte_map_lock_speculative"


@kernel
def thread_mincore(cpu: int, start: int, length: int, vec: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mincore(cpu, start, length, vec)
    cpu_idle_enter(cpu)
    return result


CALLS = functions_of(sys.modules[__name__])


@pytest.fixture(scope="module")
def collapse_engine(own_cache):
    """Return a function that makes the stepped kernel with the collapse as a call, once."""
    made = {}

    def make(protocol, rcu=1):
        if (protocol, rcu) not in made:
            config = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": rcu}
            made[protocol, rcu] = StepEngine(process.program(protocol, layer=CALLS, **config))
        return made[protocol, rcu]

    return make


class HugeProcess(Process):
    """A process with an area of 2 MiB whose first page is 1."""

    def begin(self, seed: int = 1) -> None:
        super().begin(seed)
        self.map(AREA, PAGES)
        self.write(AREA, 1)

    def is_huge(self) -> bool:
        slot = self.engine.call("find_pmd", self.segment.mm(0), AREA)
        return bool(self.segment.word(slot) & Pte.PSE)


def process_under(engine):
    geometry = Geometry(nr_cpus=3, nr_frames=1024 + 2 * PAGES, nr_huge=2, nr_spare_mms=2)
    return HugeProcess(engine, Segment.create(geometry))


@pytest.fixture(params=[1, 0], ids=["rcu-tables", "irq-tables"])
def spf_process(collapse_engine, request):
    made = process_under(collapse_engine("spf", request.param))
    yield made
    assert check_segment(made.segment) == []
    made.segment.close()


def meets(made, a_point, b_point):
    """B looks at the range, A runs to its point, B to its own, then both to their ends."""
    with Threads(made) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "collapse", AREA)
        if b_point is not LOOKING:
            b.runs_until(before("collapse_huge_page"))
        if a_point is not None:
            a.runs_until(a_point)
        b.runs_until(b_point)
        assert a.runs_to_end(letting=[b]) == 0
        result = b.runs_to_end(letting=[a])
    assert (made.read(AREA), made.read(PAGE)) == (1, 7)
    return result


@pytest.mark.parametrize(
    ("a_point", "b_point", "reason"),
    [
        (None, ENTERED, "ODD"),
        (None, CLEARED, "ODD"),
        (after("mmap_seq_read_start"), ENTERED, "VMA_COPY"),
        (after("copy_pvma"), CLEARED, "VMA_COPY"),
        (after("mmap_seq_read_check"), CLEARED, "PMD"),
        (before("speculative_page_walk_begin"), CLEARED, "PMD"),
        (before("speculative_page_walk_begin"), ENTERED, "PTE_MAP_LOCK_SEQ1"),
        (before("handle_pte_fault"), CLEARED, "PTE_MAP_LOCK_SEQ1"),
        (before(GATE), CLEARED, "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside=GATE), ENTERED, "PTE_MAP_LOCK_SEQ2"),
        (after("mmap_seq_read_check", inside=GATE), CLEARED, "PTE_MAP_LOCK_PMD"),
        (before("spin_trylock"), CLEARED, "PTE_MAP_LOCK_SEQ2"),
        (after("spin_trylock"), CLEARED, "PTE_MAP_LOCK_SEQ2"),
        (after("pte_map_lock"), CLEARED, None),
        (after("pte_map_lock"), waits(), None),
    ],
    ids=str,
)
def test_a_speculative_fault_meets_a_collapse(spf_process, a_point, b_point, reason):
    assert meets(spf_process, a_point, b_point) == Scan.SUCCEED
    assert spf_process.aborts() == ({reason: 1} if reason else {})
    assert spf_process.is_huge()


def test_the_pages_of_a_huge_page_that_is_being_split_are_resident(spf_process):
    """For a moment the entry is not present; it is no swap entry for that."""
    assert spf_process.call("collapse", AREA) == Scan.SUCCEED
    room = spf_process.segment.address["scratch"]
    with Threads(spf_process) as threads:
        a = threads.thread("A", "mincore", AREA, 2 << 12, room)
        b = threads.thread("B", "dontneed", PAGE, 4096)
        b.runs_until(after("xchg", inside="pmdp_invalidate"))
        assert a.runs_to_end() == 0
        b.runs_to_end()
    assert [spf_process.segment.word(room + 8 * i) for i in (0, 1)] == [1, 1]


def test_a_huge_page_is_left_to_the_locked_path(spf_process):
    """It is read-only after a fork: the write splits it and copies one page."""
    assert spf_process.call("collapse", AREA) == Scan.SUCCEED
    assert spf_process.call("fork") > 0
    with Threads(spf_process) as threads:
        assert threads.thread("A", "write", PAGE, 7).runs_to_end() == 0
    assert spf_process.aborts() == {"PMD": 1}
    assert spf_process.events(0)["WP_COPY"] == 1
    assert not spf_process.is_huge()
    assert (spf_process.read(AREA), spf_process.read(PAGE)) == (1, 7)


def test_a_page_table_lock_that_a_collapse_holds(spf_process):
    """B looks at the ptes, still under the mmap lock for reading: A gives up, or gets by."""
    assert meets(spf_process, before("spin_trylock"), LOOKING) == Scan.SUCCEED
    assert spf_process.aborts() == {"PTE_MAP_LOCK_PTL": 1}


def test_a_collapse_that_is_given_up_leaves_all_as_it_was(spf_process):
    """A has a reference of the page that it copies after a fork, when B looks a second time."""
    assert spf_process.call("fork") > 0
    with Threads(spf_process) as threads:
        a = threads.thread("A", "write", AREA, 7)
        b = threads.thread("B", "collapse", AREA)
        b.runs_until(before("mmap_write_lock", inside="collapse_huge_page"))
        a.runs_until(after("get_page", inside="do_wp_page"))
        b.runs_until(waits())
        a.runs_until(after("spin_unlock", inside="do_wp_page"))
        assert a.runs_to_end(letting=[b]) == 0
        assert b.runs_to_end(letting=[a]) in (Scan.SUCCEED, Scan.PAGE_COUNT)
    assert spf_process.read(AREA) == 7


# Locks of VMAs


@pytest.mark.parametrize("protocol", VMA_LOCKED)
@pytest.mark.parametrize(
    ("b_point", "reason"),
    [
        (after("vma_start_write", inside="collapse_huge_page"), "ABORT_SEQ"),
        (CLEARED, "ABORT_SEQ"),
        (after("collapse_copy_ptes"), "ABORT_SEQ"),
    ],
    ids=str,
)
def test_a_fault_meets_a_collapse_that_has_locked_the_vma(
    collapse_engine, protocol, b_point, reason
):
    made = process_under(collapse_engine(protocol))
    assert meets(made, None, b_point) == Scan.SUCCEED
    assert made.vma_lock() == {reason: 1}
    assert made.is_huge()
    assert check_segment(made.segment) == []
    made.segment.close()


VMA_LOCKED_BY_COLLAPSE = after("vma_start_write", inside="collapse_huge_page")


@pytest.mark.parametrize("protocol", VMA_LOCKED)
@pytest.mark.parametrize(
    ("a_points", "b_points", "reason"),
    [
        (None, LOCKING, "ABORT_BUSY"),
        (TAKING, LOCKING, "ABORT_BUSY"),
        (TAKING, dict.fromkeys(VMA_LOCKED, VMA_LOCKED_BY_COLLAPSE), "ABORT_SEQ_RECHECK"),
    ],
    ids=["before the first look", "before the lock", "before the second look"],
)
def test_a_fault_meets_a_collapse_that_is_locking_the_vma(
    collapse_engine, protocol, a_points, b_points, reason
):
    made = process_under(collapse_engine(protocol))
    assert meets(made, a_points and a_points[protocol], b_points[protocol]) == Scan.SUCCEED
    assert made.vma_lock() == {reason: 1}
    assert made.is_huge()
    assert check_segment(made.segment) == []
    made.segment.close()


@pytest.mark.parametrize("protocol", VMA_LOCKED)
def test_a_collapse_waits_for_a_fault_under_the_lock_of_its_vma(collapse_engine, protocol):
    made = process_under(collapse_engine(protocol))
    with Threads(made) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "collapse", AREA)
        a.runs_until(before("pte_map_lock"))
        b.runs_until(waits())
        assert "vma_start_write" in b.stack
        assert a.runs_to_end(letting=[b]) == 0
        assert b.runs_to_end(letting=[a]) == Scan.SUCCEED
    assert made.vma_lock() == {"SUCCESS": 1}
    assert made.read(PAGE) == 7
    assert check_segment(made.segment) == []
    made.segment.close()


def test_a_locked_fault_waits_for_a_collapse(collapse_engine):
    made = process_under(collapse_engine("classic"))
    with Threads(made) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "collapse", AREA)
        b.runs_until(CLEARED)
        a.runs_until(waits(), letting=[])
        assert b.runs_to_end(letting=[a]) == Scan.SUCCEED
        assert a.runs_to_end() == 0
    assert made.read(PAGE) == 7
    assert made.is_huge()
    assert check_segment(made.segment) == []
    made.segment.close()


# A collapse that leaves the count alone, as those of a file's tables do

SILENT_COLLAPSE = """
from spfemu.kernel import around, proceed

@around
def collapse_table(cpu: int, vma: int, slot: int, start: int, head: int, force: int) -> int:
    mm = load(vma + VMA.vm_mm)
    mmap_seq_write_leave(mm)
    result = proceed(cpu, vma, slot, start, head, force)
    mmap_seq_write_enter(mm)
    return result
"""
NO_PMD_CHECK = """
from spfemu.kernel import around, proceed

@around
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    pmd = load(vmf + VMF.pmd)
    store(vmf + VMF.pmd, vmf + VMF.orig_pmd)  # the gate looks at what the walk has read
    locked = proceed(cpu, vmf)
    store(vmf + VMF.pmd, pmd)
    return locked
"""


@pytest.mark.parametrize("gate", ["", NO_PMD_CHECK], ids=["as it is", "without its look"])
def test_the_look_at_the_pmd_is_needed_beside_a_collapse_that_leaves_the_count_alone(
    own_cache, gate
):
    """M10: A takes the flush between walk and gate, where it lets interrupts in, and goes on.

    Its page would be in the table that was withdrawn, which nobody walks any more.
    """
    config = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": 0}
    made = process_under(engine_with("spf", SILENT_COLLAPSE + gate, **config))
    with Threads(made) as threads:
        b = threads.thread("B", "collapse", AREA)
        b.runs_until(before("pmdp_collapse_flush"))
        a = threads.thread("A", "write", PAGE, 7)
        a.runs_until(before("speculative_page_walk_end", inside="do_handle_mm_fault"))
        b.runs_until(waits())
        assert "pmdp_collapse_flush" in b.stack
        a.runs_until(before(GATE))
        b.runs_until(before("mmap_seq_write_enter", inside="collapse_table"))
        assert a.runs_to_end(letting=[b]) == 0
        assert b.runs_to_end(letting=[a]) == Scan.SUCCEED
    assert made.aborts() == ({} if gate else {"PTE_MAP_LOCK_PMD": 1})
    found = check_segment(made.segment)
    made.segment.close()
    assert any("frame" in violation for violation in found) == bool(gate), found


# A split by one thread, seen by another


@pytest.mark.parametrize("protocol", GUARDED)
def test_two_threads_meet_at_a_huge_page_under_the_lock_for_reading(collapse_engine, protocol):
    """A finds the entry huge; B splits it before A has its lock, for a part that it drops."""
    made = process_under(collapse_engine(protocol))
    assert made.call("collapse", AREA) == Scan.SUCCEED
    with Threads(made) as threads:
        a = threads.thread("A", "dontneed", AREA, PAGES << 12)
        b = threads.thread("B", "dontneed", PAGE, 4096)
        a.runs_until(before("zap_huge_pmd"))
        assert b.runs_to_end(letting=[a]) == 0
        assert a.runs_to_end() == 0
    assert (made.read(AREA), made.read(PAGE)) == (0, 0)
    assert check_segment(made.segment) == []
    assert int((made.segment.huge_pages["live"] == 0).sum()) == 2
    made.segment.close()


@pytest.mark.parametrize("protocol", GUARDED)
def test_faults_collapses_and_forks_in_random_orders(collapse_engine, protocol):
    made = process_under(collapse_engine(protocol))
    for seed in range(6):
        made.begin(seed)
        with Threads(made) as threads:
            a = threads.thread("A", "write", PAGE, 7)
            b = threads.thread("B", "collapse", AREA)
            c = threads.thread("C", *(("fork",) if seed % 2 else ("dontneed", AREA, 4096)))
            schedule = threads.runs_randomly(seed)
            assert a.result == 0, (seed, schedule)
            assert c.result >= 0, (seed, schedule)
            assert b.result in set(Scan), (seed, schedule)
        assert check_segment(made.segment) == [], (seed, schedule)
        assert made.read(PAGE) == 7, (seed, schedule)
        assert made.read(AREA) == (1 if seed % 2 else 0), (seed, schedule)
    made.segment.close()
