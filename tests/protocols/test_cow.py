# SPDX-License-Identifier: MIT
"""Copy on write between a forked child and a parent of several threads.

A and B are threads of the parent on CPUs 0 and 1; CPU 2 prepares, checks and plays the child.  The
fault that copies a page drops the page-table lock for it and passes the gate a second time.
"""

import pytest
from faults import put_back, take_all_frames
from mutants import mutant_engine
from protocol_sets import GUARDED, VMA_LOCKED

from spfemu.checks import check_segment
from spfemu.engines.plain import KernelPanic
from spfemu.engines.script import after, before
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Errno
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
PAGE = AREA + 4096
WORD = PAGE + 8
"""In the same page, for a thread whose writes must not get lost."""
ELSEWHERE = 1 << 41
EFAULT, ENOMEM = int(Errno.EFAULT), int(Errno.ENOMEM)

FIRST_GATE, SECOND_GATE = "pte_spinlock", "wp_page_copy"
UNLOCKED = after("spin_unlock", inside="do_wp_page")
"""Between the gates: the page is being copied."""


class Family(Process):
    """A process with a page at PAGE that it shares with a child; nobody runs the child."""

    def begin(self, seed: int = 1) -> None:
        super().begin(seed)
        self.parent = self.segment.mm(0)
        self.child = 0

    def forks(self) -> None:
        self.map(AREA, 16)
        self.write(AREA, 1)
        self.write(PAGE, 2)
        self.child = self.call("fork")
        assert self.child > 0

    def child_reads(self, address: int) -> int:
        """Read in the child, on the CPU that is the parent's else."""
        self.engine.call("switch_mm", self.segment.cpu(2), self.child)
        value = self.read(address)
        self.engine.call("switch_mm", self.segment.cpu(2), self.parent)
        return value

    def child_exits(self) -> None:
        self.engine.call("switch_mm", self.segment.cpu(2), self.child)
        assert self.call("exit", self.parent) == 0
        self.child = 0


def family_under(engine):
    return Family(engine, Segment.create(Geometry(nr_cpus=3, nr_spare_mms=2)))


@pytest.fixture
def family(spf_engine):
    """A forked process under spf, with either scheme that frees page tables."""
    made = family_under(spf_engine)
    made.forks()
    yield made
    assert check_segment(made.segment) == []
    made.segment.close()


@pytest.fixture
def threads(family):
    with Threads(family) as script:
        yield script


def writer(threads):
    """Return B about to make a whole write section that changes nothing where A faults."""
    return threads.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)


def test_without_a_writer_the_copy_is_speculative(family, threads):
    a = threads.thread("A", "write", PAGE, 7)
    assert a.runs_to_end() == 0

    assert family.aborts() == {}
    assert family.events(0)["SPF_ATTEMPT_WP"] == 1
    assert family.events(0)["WP_COPY"] == 1
    assert "FAULT_CLASSIC" not in family.events(0)
    assert (family.read(PAGE), family.child_reads(PAGE)) == (7, 2)


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (after("mmap_seq_read_start"), "VMA_COPY"),
        (after("mmap_seq_read_check"), "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside=FIRST_GATE), "PTE_MAP_LOCK_SEQ2"),
        (after("spin_trylock", inside=FIRST_GATE), "PTE_MAP_LOCK_SEQ2"),
        (after(FIRST_GATE), "PTE_MAP_LOCK_SEQ1"),
        (after("get_page", inside="do_wp_page"), "PTE_MAP_LOCK_SEQ1"),
        (UNLOCKED, "PTE_MAP_LOCK_SEQ1"),
        (before("copy_page", inside=SECOND_GATE), "PTE_MAP_LOCK_SEQ1"),
        (after("copy_page", inside=SECOND_GATE), "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside=SECOND_GATE), "PTE_MAP_LOCK_SEQ2"),
        (after("spin_trylock", inside=SECOND_GATE), "PTE_MAP_LOCK_SEQ2"),
        (after("pte_map_lock", inside=SECOND_GATE), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("leaves", [True, False], ids=["and leaves", "and stays"])
def test_a_writer_enters_at_either_gate(family, threads, point, reason, leaves):
    a = threads.thread("A", "write", PAGE, 7)
    b = writer(threads)

    a.runs_until(point)
    if leaves:
        b.runs_to_end()
    else:
        b.runs_until(after("mmap_seq_write_enter"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end(letting=[a])

    assert family.aborts() == ({reason: 1} if reason else {})
    assert family.events(0)["WP_COPY"] == 1
    assert (family.read(PAGE), family.child_reads(PAGE)) == (7, 2)


def test_a_writer_inside_at_the_start_is_odd(family, threads):
    a = threads.thread("A", "write", PAGE, 7)
    b = writer(threads)
    b.runs_until(after("mmap_seq_write_enter"))

    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()

    assert family.aborts() == {"ODD": 1}
    assert (family.read(PAGE), family.child_reads(PAGE)) == (7, 2)


@pytest.mark.parametrize("point", [before(FIRST_GATE), UNLOCKED], ids=["first", "second"])
def test_a_page_table_lock_that_is_held_at_either_gate(family, threads, point):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "dontneed", AREA, 4096)

    a.runs_until(point)
    b.runs_until(after("xchg", inside="zap_pte_range"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end(letting=[a])

    assert family.aborts() == {"PTE_MAP_LOCK_PTL": 1}
    assert (family.read(PAGE), family.child_reads(PAGE)) == (7, 2)
    assert (family.read(AREA), family.child_reads(AREA)) == (0, 1)


@pytest.mark.parametrize("gate", [FIRST_GATE, SECOND_GATE])
def test_a_table_unlinked_behind_the_first_check_of_either_gate(family, threads, gate):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "munmap", AREA, 16 << 12)

    a.runs_until(after("mmap_seq_read_check", inside=gate))
    b.runs_until(after("free_pgtables"))

    assert a.runs_to_end(letting=[b]) == -EFAULT
    b.runs_to_end()
    assert family.aborts() == {"PTE_MAP_LOCK_PMD": 1}
    assert family.child_reads(PAGE) == 2


def test_a_page_without_anon_vma_is_copied_by_the_locked_path(family, threads):
    family.map(ELSEWHERE, 4)
    assert family.read(ELSEWHERE) == 0
    a = threads.thread("A", "write", ELSEWHERE, 7)

    assert a.runs_to_end() == 0

    assert family.aborts() == {"ANON_VMA": 1}
    assert family.events(0)["SPF_ATTEMPT_WP"] == 1
    assert family.read(ELSEWHERE) == 7


@pytest.mark.parametrize("point", [before(FIRST_GATE), UNLOCKED], ids=["first", "second"])
def test_another_thread_copies_first(family, threads, point):
    """It holds the page-table lock until A has answered its flush, so A cannot get by it."""
    a = threads.thread("A", "write", WORD, 7)
    b = threads.thread("B", "write", PAGE, 8)

    a.runs_until(point)
    assert b.runs_to_end(letting=[a]) == 0
    assert a.runs_to_end() == 0

    assert family.aborts() == {"PTE_MAP_LOCK_PTL": 1}
    assert "WP_COPY" not in family.events(0)
    assert (family.read(PAGE), family.read(WORD)) == (8, 7)
    assert (family.child_reads(PAGE), family.child_reads(WORD)) == (2, 0)


def test_the_page_goes_under_the_read_lock_while_it_is_copied(family, threads):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "dontneed", PAGE, 4096)

    a.runs_until(UNLOCKED)
    b.runs_until(after("zap_pte_range"))
    a.runs_until(after("wp_page_copy"))
    assert family.aborts() == {}
    assert family.events(0)["PTE_CHANGED"] == 1

    # the access is tried again and maps a fresh page
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert (family.read(PAGE), family.child_reads(PAGE)) == (7, 2)


def test_the_other_sharer_goes_while_the_page_is_copied(family, threads):
    a = threads.thread("A", "write", PAGE, 7)

    a.runs_until(UNLOCKED)
    family.child_exits()
    assert a.runs_to_end() == 0

    assert family.aborts() == {}
    assert family.events(0)["WP_COPY"] == 1
    assert family.read(PAGE) == 7


def test_the_last_sharer_reuses_the_page(family, threads):
    family.child_exits()
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == 0

    assert family.aborts() == {}
    assert family.events(0)["WP_REUSE"] == 1
    assert family.read(PAGE) == 7


def test_no_frame_for_the_copy(family, threads):
    taken = take_all_frames(family)
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == -ENOMEM
    put_back(family, taken)

    assert family.aborts() == {"RECLAIM": 1}
    assert family.events(0)["FAULT_OOM"] == 1
    assert (family.read(PAGE), family.child_reads(PAGE)) == (2, 2)


# A fork during a fault


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (after("mmap_seq_read_start"), "VMA_COPY"),
        (after("mmap_seq_read_check"), "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside=FIRST_GATE), "PTE_MAP_LOCK_SEQ2"),
        (UNLOCKED, "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside=SECOND_GATE), "PTE_MAP_LOCK_SEQ2"),
    ],
    ids=str,
)
def test_a_fork_during_a_copy(family, threads, point, reason):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "fork")

    a.runs_until(point)
    assert b.runs_to_end(letting=[a]) > 0
    second = b.result
    assert a.runs_to_end() == 0

    assert family.aborts() == {reason: 1}
    assert (family.read(PAGE), family.child_reads(PAGE)) == (7, 2)
    family.child = second
    assert family.child_reads(PAGE) == 2


def test_a_fork_waits_for_a_fault_behind_its_gate(family, threads):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "fork")

    a.runs_until(after("pte_map_lock", inside=SECOND_GATE))
    b.runs_until(after("dup_vma"))
    assert a.runs_to_end(letting=[b]) == 0
    second = b.runs_to_end()

    assert family.aborts() == {}
    # the copy was there when the fork came to the page
    family.child = second
    assert family.child_reads(PAGE) == 7


# Stale translations: a thread goes on writing through its TLB until the fork flushes it


def stale_store(engine):
    """A copies a page of which C writes a word through a translation from before B's fork.

    Returns what C wrote and what the parent's threads read there afterwards.
    """
    family = family_under(engine)
    family.map(AREA, 16)
    family.write(PAGE, 2)
    family.write(WORD, 3)
    faults = family.events(2)["PGFAULT"]
    with Threads(family) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "fork")
        c = threads.thread("C", "write", WORD, 9)
        b.runs_until(before("flush_tlb_mm"))
        try:
            a.runs_until(after("copy_page"))
        except AssertionError:
            assert "mmap_read_lock" in a.stack  # it waits for the fork
        assert c.runs_to_end(letting=[a, b]) == 0
        assert family.events(2)["PGFAULT"] == faults
        assert a.runs_to_end(letting=[b]) == 0
        b.runs_to_end(letting=[a])
    found = family.read(WORD)
    assert family.read(PAGE) == 7
    assert check_segment(family.segment) == []
    family.segment.close()
    return 9, found


@pytest.mark.parametrize("protocol", GUARDED)
def test_no_store_is_lost_to_a_copy_during_a_fork(engine_of, protocol):
    written, found = stale_store(engine_of(protocol))
    assert found == written


@pytest.mark.parametrize("protocol", ["classic", "spf", "spf-vma"])
def test_a_flush_behind_the_unlock_loses_a_store(own_cache, protocol):
    """Under any protocol: what keeps faults out has to be held until all TLBs are flushed."""
    written, found = stale_store(mutant_engine(protocol, "fork_flushes_late"))
    assert found != written


@pytest.mark.parametrize("protocol", ["spf-vma", "spf-vma-v11", *VMA_LOCKED])
def test_a_fork_that_does_not_lock_vmas_loses_a_store(own_cache, protocol):
    """Dufour's series up to v11, and Linux 6.4.0: such faults do not look at the mmap lock."""
    written, found = stale_store(mutant_engine(protocol, "fork_locks_no_vma"))
    assert found != written


# Frames that two processes unmap at once


def unmapped_at_once(engine):
    """B unmaps a child's pages, some of them shared, while A has gathered them; the violations."""
    family = family_under(engine)
    family.forks()
    for index in (2, 3):
        family.write(AREA + index * 4096, index)
    family.child_exits()
    child = family.call("fork")
    engine.call("switch_mm", family.segment.cpu(1), child)
    # a page of its own among the shared ones: the two do not meet the same frames in a row
    assert family.call("write", PAGE, 7, cpu=1) == 0
    with Threads(family) as threads:
        a = threads.thread("A", "munmap", AREA, 16 << 12)
        b = threads.thread("B", "munmap", AREA, 16 << 12)
        a.runs_until(after("unmap_page_range"))
        assert b.runs_to_end(letting=[a]) == 0
        assert a.runs_to_end() == 0
    family.child, found = child, check_segment(family.segment)
    family.segment.close()
    return found


def test_two_processes_gather_the_same_frames(spf_engine):
    assert unmapped_at_once(spf_engine) == []


def test_gathers_must_not_link_shared_frames(own_cache):
    with pytest.raises(KernelPanic) as caught:
        unmapped_at_once(mutant_engine("spf", "gathers_link_shared_frames"))
    assert caught.value.code == Bug.REFCOUNT_UNDERFLOW


# Random orders


@pytest.mark.parametrize("protocol", GUARDED)
def test_forks_and_faults_in_random_orders(engine_of, protocol):
    family = family_under(engine_of(protocol))
    for seed in range(16):
        family.begin(seed)
        family.map(AREA, 16)
        family.write(PAGE, 2)
        family.write(WORD, 3)
        with Threads(family) as threads:
            a = threads.thread("A", "write", PAGE, 7)
            b = threads.thread("B", "fork")
            c = threads.thread("C", "write", WORD, 9)
            schedule = threads.runs_randomly(seed)
            assert (a.result, c.result) == (0, 0), (seed, schedule)
            family.child = b.result
        assert check_segment(family.segment) == [], (seed, schedule)
        assert (family.read(PAGE), family.read(WORD)) == (7, 9), (seed, schedule)
        seen = family.child_reads(PAGE), family.child_reads(WORD)
        assert seen in {(2, 3), (7, 3), (2, 9), (7, 9)}, (seed, schedule)
        assert (family.read(PAGE), family.read(WORD)) == (7, 9), (seed, schedule)
        family.child_exits()
        assert check_segment(family.segment) == [], (seed, schedule)
    family.segment.close()
