# SPDX-License-Identifier: MIT
"""Where a writer overlaps a speculative fault decides which counter moves, and no other does.

A is the faulting thread, B the other one.  Whatever aborts, the retry has to leave A with the
result of a moment at which the mm was at rest.
"""

import pytest
from faults import put_back, take_all_frames

from spfemu.engines.script import after, before, waits
from spfemu.events import Event
from spfemu.mm.flags import PMD_SIZE, Errno, FileOps, Prot
from spfemu.stress.schedules.calls import RW

AREA = 1 << 40
"""Where A faults; the first page of the area has been written, so tables and anon_vma are there."""
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
EFAULT, ENOMEM = int(Errno.EFAULT), int(Errno.ENOMEM)

IN_LOOKUP = after("mmap_seq_read_start")
AFTER_COPY_CHECK = after("mmap_seq_read_check")
AFTER_SEQ1 = after("mmap_seq_read_check", inside="pte_map_lock_speculative")
BEFORE_SEQ2 = before("mmap_seq_read_check", nth=2, inside="pte_map_lock_speculative")
AFTER_SEQ2 = after("mmap_seq_read_check", nth=2, inside="pte_map_lock_speculative")


@pytest.fixture
def area(spf):
    """An area in which speculation succeeds."""
    spf.map(AREA, 16)
    spf.write(AREA, 1)
    return AREA


def writer(threads):
    """Return B about to make a whole write section that changes nothing where A faults."""
    return threads.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)


def test_without_a_writer_nothing_aborts(spf, threads, area):
    a = threads.thread("A", "write", PAGE, 7)
    assert a.runs_to_end() == 0
    assert spf.aborts() == {}
    assert spf.events(0)["SPF_ATTEMPT"] == 1
    assert "FAULT_CLASSIC" not in spf.events(0)
    assert spf.read(PAGE) == 7


# The rows of the table: the first gate, for an empty pte.


def test_a_writer_inside_when_the_count_is_read_is_odd(spf, threads, area):
    a = threads.thread("A", "write", PAGE, 7)
    b = writer(threads)
    b.runs_until(after("mmap_seq_write_enter"))

    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()

    assert spf.aborts() == {"ODD": 1}
    assert spf.read(PAGE) == 7


ENTERS = {
    "VMA_COPY": [
        after("mmap_seq_read_start"),
        after("rcu_read_lock", inside="do_speculative_fault"),
        after("__find_vma", inside="do_speculative_fault"),
        after("load", nth=7, inside="copy_pvma"),
        after("copy_pvma"),
        before("mmap_seq_read_check"),
        before("read_once", inside="mmap_seq_read_check"),
    ],
    "PTE_MAP_LOCK_SEQ1": [
        after("mmap_seq_read_check"),
        before("access_error"),
        before("speculative_page_walk_begin"),
        after("pud_offset", inside="do_handle_mm_fault"),
        after("speculative_page_walk_end"),
        before("vmf_alloc_page"),
        after("clear_page"),
        before("pte_map_lock"),
        before("mmap_seq_read_check", inside="pte_map_lock"),
    ],
    "PTE_MAP_LOCK_SEQ2": [AFTER_SEQ1, before("spin_trylock"), after("spin_trylock"), BEFORE_SEQ2],
}
"""By the check at which the fault gives up: where it is when the writer enters."""


@pytest.mark.parametrize(
    ("reason", "point"), [(r, point) for r, points in ENTERS.items() for point in points], ids=str
)
@pytest.mark.parametrize("leaves", [True, False], ids=["and leaves", "and stays"])
def test_a_writer_that_enters_shows_at_the_next_check(spf, threads, area, reason, point, leaves):
    a = threads.thread("A", "write", PAGE, 7)
    b = writer(threads)

    a.runs_until(point)
    if leaves:
        b.runs_to_end()
    else:
        b.runs_until(after("mmap_seq_write_enter"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()

    assert spf.aborts() == {reason: 1}
    assert spf.read(PAGE) == 7


def test_a_writer_that_enters_behind_the_gate_waits_for_the_page_table_lock(spf, threads, area):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "munmap", PAGE, 4096)

    a.runs_until(AFTER_SEQ2)
    b.runs_until(waits())
    assert "zap_pte_range" in b.stack
    assert a.runs_to_end() == 0
    b.runs_to_end()

    assert spf.aborts() == {}
    assert spf.call("read", PAGE) == (-EFAULT, 0)


@pytest.mark.parametrize("point", [AFTER_SEQ2, before("set_pte")], ids=str)
def test_a_writer_that_needs_no_page_table_lock_does_not_disturb_behind_the_gate(
    spf, threads, area, point
):
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(point)
    writer(threads).runs_to_end()

    assert a.runs_to_end() == 0
    assert spf.aborts() == {}
    assert spf.read(PAGE) == 7


def test_a_writer_that_came_and_went_before_is_nothing(spf, threads, area):
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(before("mmap_seq_read_start"))
    writer(threads).runs_to_end()

    assert a.runs_to_end() == 0
    assert spf.aborts() == {}


def test_speculation_goes_on_while_a_downgraded_munmap_finishes(spf, threads, area):
    spf.map(ELSEWHERE, 4)
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)

    b.runs_until(after("mmap_write_downgrade"))
    assert a.runs_to_end() == 0
    b.runs_to_end()

    assert spf.aborts() == {}
    assert "FAULT_CLASSIC" not in spf.events(0)


def test_holders_of_the_read_lock_do_not_disturb(spf, threads, area):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "dontneed", PAGE, 4096)

    a.runs_until(after("mmap_seq_read_check"))
    b.runs_to_end()

    assert a.runs_to_end() == 0
    assert spf.aborts() == {}


# Reads: the zero page is mapped behind the same gate.


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (IN_LOOKUP, "VMA_COPY"),
        (AFTER_COPY_CHECK, "PTE_MAP_LOCK_SEQ1"),
        (AFTER_SEQ1, "PTE_MAP_LOCK_SEQ2"),
        (AFTER_SEQ2, None),
    ],
    ids=str,
)
def test_reads_pass_the_same_gate(spf, threads, area, point, reason):
    a = threads.thread("A", "read", PAGE)
    a.runs_until(point)
    writer(threads).runs_to_end()

    assert a.runs_to_end() == (0, 0)
    assert spf.aborts() == ({reason: 1} if reason else {})
    assert spf.events(0)["ANON_ZERO_PAGE"] == 1


# Copy on write passes the gate twice: the table's rows hold for each time.


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (IN_LOOKUP, "VMA_COPY"),
        (AFTER_COPY_CHECK, "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside="pte_spinlock"), "PTE_MAP_LOCK_SEQ2"),
        (after("pte_spinlock"), "PTE_MAP_LOCK_SEQ1"),
        (after("spin_unlock", inside="do_wp_page"), "PTE_MAP_LOCK_SEQ1"),
        (before("clear_page", inside="wp_page_copy"), "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside="wp_page_copy"), "PTE_MAP_LOCK_SEQ2"),
        (after("spin_trylock", inside="wp_page_copy"), "PTE_MAP_LOCK_SEQ2"),
        (after("pte_map_lock", inside="wp_page_copy"), None),
    ],
    ids=str,
)
def test_both_gates_of_copy_on_write(spf, threads, area, point, reason):
    assert spf.read(PAGE) == 0  # maps the zero page
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(point)
    writer(threads).runs_to_end()

    assert a.runs_to_end() == 0
    assert spf.aborts() == ({reason: 1} if reason else {})
    assert spf.events(0)["WP_COPY"] == 1
    assert spf.read(PAGE) == 7


def test_copy_on_write_notices_that_the_page_went_under_the_read_lock(spf, threads, area):
    assert spf.read(PAGE) == 0
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "dontneed", PAGE, 4096)

    a.runs_until(after("spin_unlock", inside="do_wp_page"))
    b.runs_until(after("zap_pte_range"))
    a.runs_until(after("wp_page_copy"))
    assert spf.aborts() == {}
    assert spf.events(0)["PTE_CHANGED"] == 1

    # the access is tried again and maps a fresh page
    assert a.runs_to_end() == 0
    b.runs_to_end()
    assert spf.read(PAGE) == 7


def test_a_frame_without_another_user_is_reused_under_the_gate_lock(spf, threads, area):
    spf.write(PAGE, 6)
    assert spf.call("mprotect", AREA, 16 << 12, int(Prot.READ)) == 0
    assert spf.call("mprotect", AREA, 16 << 12, RW) == 0
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(after("pte_spinlock"))
    writer(threads).runs_to_end()

    assert a.runs_to_end() == 0
    assert spf.aborts() == {}
    assert spf.events(0)["WP_REUSE"] == 1


# The other reasons, each with somebody who interferes and a retry that ends well.


def test_unmapped_when_the_lookup_finds_nothing_and_the_mapping_comes_meanwhile(spf, threads, area):
    a = threads.thread("A", "write", ELSEWHERE, 7)
    b = writer(threads)

    a.runs_until(after("__find_vma"))
    b.runs_to_end()

    assert a.runs_to_end() == 0
    assert spf.aborts() == {"UNMAPPED": 1}
    assert spf.read(ELSEWHERE) == 7


def test_unmapped_wins_over_the_check_when_the_area_goes_during_the_lookup(spf, threads, area):
    spf.map(ELSEWHERE, 4)
    a = threads.thread("A", "write", ELSEWHERE, 7)
    b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)

    a.runs_until(after("mmap_seq_read_start"))
    b.runs_to_end()

    assert a.runs_to_end() == -EFAULT
    assert spf.aborts() == {"UNMAPPED": 1}
    assert spf.events(0)["FAULT_SIGSEGV_MAPERR"] == 1


def test_the_copy_of_a_vma_that_is_freed_meanwhile_is_not_used(spf, threads, area):
    spf.map(ELSEWHERE, 4)
    a = threads.thread("A", "write", ELSEWHERE, 7)
    b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)

    a.runs_until(after("__find_vma"))
    b.runs_to_end()

    # its first word is the link of RCU's queue by now, and 0 looks like a start
    assert a.runs_to_end() == -EFAULT
    assert spf.aborts() == {"VMA_COPY": 1}


def test_a_vma_split_meanwhile_is_found_again(spf, threads, area):
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "mprotect", AREA + (8 << 12), 8 << 12, int(Prot.READ))

    a.runs_until(after("load", nth=2, inside="copy_pvma"))
    b.runs_to_end(letting=[a])

    assert a.runs_to_end() == 0
    assert spf.aborts() == {"VMA_COPY": 1}
    assert spf.read(PAGE) == 7


def test_access_error_is_decided_by_the_locked_path_alone(spf, threads, area):
    assert spf.call("mprotect", AREA, 16 << 12, int(Prot.READ)) == 0
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "mprotect", AREA, 16 << 12, RW)

    a.runs_until(after("mmap_seq_read_check"))
    b.runs_to_end(letting=[a])

    assert a.runs_to_end() == 0
    assert spf.aborts() == {"ACCESS_ERROR": 1}
    assert spf.read(PAGE) == 7


def test_access_error_that_stays_is_a_signal(spf, threads, area):
    assert spf.call("mprotect", AREA, 16 << 12, int(Prot.READ)) == 0
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == -EFAULT
    assert spf.aborts() == {"ACCESS_ERROR": 1}
    assert spf.events(0)["FAULT_SIGSEGV_ACCERR"] == 1


@pytest.mark.parametrize(
    ("address", "reason"), [(ELSEWHERE, "PUD"), (AREA + 3 * PMD_SIZE, "PMD")], ids=["PUD", "PMD"]
)
def test_missing_tables_are_made_by_the_locked_path(spf, threads, area, address, reason):
    spf.map(address, 4)
    a = threads.thread("A", "write", address, 7)
    b = threads.thread("B", "write", address + 4096, 8)

    # B makes the tables between A's abort and A's retry
    a.runs_until(after("do_speculative_fault"))
    assert b.runs_to_end() == 0

    assert a.runs_to_end() == 0
    assert spf.aborts() == {reason: 1}
    assert spf.read(address) == 7
    assert spf.read(address + 4096) == 8


@pytest.mark.parametrize("address", [ELSEWHERE, AREA + 3 * PMD_SIZE], ids=["PUD", "PMD"])
def test_two_locked_faults_make_missing_tables_once(spf, threads, area, address):
    spf.map(address, 4)
    a = threads.thread("A", "write", address, 7)
    b = threads.thread("B", "write", address + 4096, 8)
    a.runs_until(before("spin_lock", inside="table_alloc"))
    assert b.runs_to_end() == 0
    assert a.runs_to_end() == 0
    assert spf.read(address) == 7
    assert spf.read(address + 4096) == 8


def test_tables_that_go_before_the_walk_end_it(spf, threads, area):
    # a second area shares nothing with the first, so that its tables go with it
    spf.map(ELSEWHERE, 4)
    assert spf.call("read", ELSEWHERE + 8192) == (0, 0)
    assert spf.call("dontneed", ELSEWHERE, 4 << 12) == 0
    a = threads.thread("A", "read", ELSEWHERE)
    b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)

    a.runs_until(AFTER_COPY_CHECK)
    b.runs_until(after("free_pgtables"))

    assert a.runs_to_end(letting=[b]) == (-EFAULT, 0)
    b.runs_to_end()
    assert spf.aborts() == {"PUD": 1}


def test_anon_vma_is_made_by_the_locked_path_once(spf, threads, area):
    spf.map(ELSEWHERE, 4)
    assert spf.read(ELSEWHERE) == 0
    a = threads.thread("A", "write", ELSEWHERE + 4096, 7)
    b = threads.thread("B", "write", ELSEWHERE + 8192, 8)

    a.runs_until(after("do_speculative_fault"))
    b.runs_until(before("spin_lock", inside="anon_vma_prepare"))
    assert a.runs_to_end() == 0
    assert b.runs_to_end() == 0

    assert spf.aborts(0) == {"ANON_VMA": 1}
    assert spf.aborts(1) == {"ANON_VMA": 1}
    assert spf.read(ELSEWHERE + 4096) == 7
    assert spf.read(ELSEWHERE + 8192) == 8


def test_anon_vma_wins_over_a_writer_that_enters_after_the_copy(spf, threads, area):
    spf.map(ELSEWHERE, 4)
    assert spf.read(ELSEWHERE) == 0
    a = threads.thread("A", "write", ELSEWHERE + 4096, 7)
    b = threads.thread("B", "mmap", 1 << 42, 4096, RW, 0x32)
    a.runs_until(AFTER_COPY_CHECK)
    b.runs_to_end()

    assert a.runs_to_end() == 0
    assert spf.aborts() == {"ANON_VMA": 1}


def test_a_table_unlinked_behind_the_first_check_changes_the_pmd(spf, threads, area):
    spf.map(ELSEWHERE, 4)
    assert spf.read(ELSEWHERE) == 0
    a = threads.thread("A", "read", ELSEWHERE + 4096)
    b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)

    a.runs_until(AFTER_SEQ1)
    b.runs_until(after("free_pgtables"))

    assert a.runs_to_end(letting=[b]) == (-EFAULT, 0)
    b.runs_to_end()
    assert spf.aborts() == {"PTE_MAP_LOCK_PMD": 1}


def test_a_page_table_lock_that_is_held_is_not_waited_for(spf, threads, area):
    spf.write(PAGE, 6)
    a = threads.thread("A", "write", PAGE + 4096, 7)
    b = threads.thread("B", "dontneed", PAGE, 4096)

    # B holds the lock, and the mmap lock for reading
    b.runs_until(after("xchg", inside="zap_pte_range"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end(letting=[a])

    assert spf.aborts() == {"PTE_MAP_LOCK_PTL": 1}
    assert spf.read(PAGE + 4096) == 7
    assert spf.read(PAGE) == 0


@pytest.mark.parametrize("zero_page", [False, True], ids=["empty", "copy-on-write"])
def test_without_a_frame_the_locked_path_decides(spf, threads, area, zero_page):
    if zero_page:
        assert spf.read(PAGE) == 0
    taken = take_all_frames(spf)
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == -ENOMEM
    put_back(spf, taken)

    assert spf.aborts() == {"RECLAIM": 1}
    assert spf.events(0)["FAULT_OOM"] == 1
    assert spf.read(PAGE) == 0
    spf.write(PAGE, 7)


def test_shared_memory_is_not_speculated_on(spf, threads, area):
    index = int(spf.segment.vmas["vm_start"].tolist().index(AREA))
    spf.segment.vmas["vm_ops"][index] = FileOps.SHMEM
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(before("do_locked_fault"))
    spf.segment.vmas["vm_ops"][index] = 0
    assert a.runs_to_end() == 0
    assert spf.aborts() == {"NO_SPECULATE": 1}


# What holds off the freeing of page tables.


def test_tables_stay_while_a_walker_is_inside(spf, threads, area):
    spf.map(ELSEWHERE, 4)
    assert spf.read(ELSEWHERE) == 0
    a = threads.thread("A", "read", ELSEWHERE + 4096)
    b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)
    a.runs_until(after("speculative_page_walk_begin", inside="do_handle_mm_fault"))
    a.runs_until(before("read_once", nth=4, inside="do_handle_mm_fault"))
    table = spf.segment.pages[a.fiber.event.arguments[0] - spf.segment.address["frames"] >> 12]
    kind = int(table["flags"])

    b.runs_until(waits())
    assert int(table["flags"]) == kind

    assert b.runs_to_end(letting=[a]) == 0
    assert a.runs_to_end() == (-EFAULT, 0)


def test_a_process_with_one_thread_does_not_try(spf, threads, area):
    spf.segment.mms["mm_users"] = 1
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == 0
    assert "SPF_ATTEMPT" not in spf.events(0)
    assert spf.events(0)["FAULT_CLASSIC"] == 1
    assert spf.segment.cpus["event"][0][Event.PGFAULT] == 1
