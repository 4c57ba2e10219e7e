# SPDX-License-Identifier: MIT
"""Every way in which a fault of every kind gives up without the mmap lock, under every protocol.

The tables of docs/protocols.md say which there are; each mark in them is a script here, and each
script a mark.  A script brings A, which is about to fault, to where it cannot but give up; then A
runs to its end, on the locked path.  It has counted that one reason, and has the result that a
locked fault would have had.  Where exactly each window begins and ends is scripted in the tests of
the single protocols and kinds.
"""

from pathlib import Path

import pytest
from faults import (
    AREA,
    FAULT_AT,
    KINDS,
    LOCKING,
    LOW,
    NEIGHBOUR,
    PAGES,
    READS,
    TAKING,
    Faulting,
    put_back,
    take_all_frames,
)
from protocol_engines import stepped
from protocol_sets import SPECULATIVE, VMA_LOCKED

from spfemu.checks import check_segment
from spfemu.engines.script import after, before, waits
from spfemu.events import ABORT_REASONS, Event
from spfemu.mm.flags import Errno, Pg, Prot
from spfemu.mm.mcopy import UffdCopy
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Threads
from spfemu.stress.schedules.served import MISSING, WP

DOCS = Path(__file__).parents[2] / "docs" / "protocols.md"
SPF_VMA = [name for name in SPECULATIVE if name.startswith("spf-vma")]
MARKS = {
    "aborts-where": {"x": SPECULATIVE, "v": SPF_VMA},
    "vma-lock-where": {"x": VMA_LOCKED, "l": ["vma-lock"], "r": ["vma-refcount"]},
}
"""What a mark in a table stands for."""
GATE = "pte_map_lock_speculative"
IN_GATE = after("speculation_holds", inside=GATE)
GATES = {"copy": 2, "hint": 2}
"""Kinds that pass the gate more than once: a script shows the reason each time."""
NEW = AREA + (32 << 12)
"""Where a mapping without an anon_vma has its page table."""
LOCKED = after("vma_start_write", inside="__split_vma")
EFAULT = int(Errno.EFAULT)

ALL = tuple(KINDS)
FILLING = ("read", "write", "file read", "file copy")
GATED = (*FILLING, "reuse", "copy", "hint")
WALKED = (*GATED, "swap", "huge")
ANON = ("read", "write", "reuse", "copy", "hint", "swap", "huge")
FILE = ("file read", "file copy", "shared write", "shmem")

SCRIPTS = {}
"""The script of each protocol, way to give up, and kind of fault."""


def shows(way, kinds, protocols=SPECULATIVE):
    """Register a script for these."""

    def register(script):
        for cell in ((p, way, k) for p in protocols for k in kinds):
            assert cell not in SCRIPTS, cell
            SCRIPTS[cell] = script
        return script

    return register


# A script gets the process, the script's threads, and which gate is meant.  It returns A, followed
# by those whom A has to let go on.

# Entry


@shows("ODD", ALL)
def a_writer_is_inside(made, threads, gate):
    b = made.enters(threads)
    return [made.faults(threads), b]


@shows("UNMAPPED", sorted(set(ALL) - {"stack"}))
@shows("ABORT_UNMAPPED", sorted(set(ALL) - {"stack"}), VMA_LOCKED)
def the_vma_goes_before_the_lookup(made, threads, gate):
    b = made.unmaps(threads, after("mmap_write_downgrade"))
    return [made.faults(threads), b]


@shows("UNMAPPED", ["stack"])
@shows("ABORT_UNMAPPED", ["stack"], VMA_LOCKED)
def below_a_stack_is_nothing_yet(made, threads, gate):
    return [made.faults(threads)]


@shows("NO_SPECULATE", ["shared write", "shmem"])
@shows("ABORT_NOT_ANON", FILE, ["vma-lock"])
def such_mappings_are_not_tried(made, threads, gate):
    return [made.faults(threads)]


@shows("VMA_COPY", WALKED)
def a_writer_enters_before_the_copy_is_checked(made, threads, gate):
    a = made.faults(threads, after("copy_pvma"))
    return [a, made.enters(threads)]


@shows("ACCESS_ERROR", WALKED)
@shows("ACCESS_ERROR", ANON, ["vma-lock"])
def the_vma_forbids_the_access_for_now(made, threads, gate):
    prot = 0 if made.kind in READS else int(Prot.READ)
    assert made.call("mprotect", LOW, made.length, prot) == 0
    if made.kind == "hint":
        made.prepares_hint()
    a = made.faults(threads, before("do_locked_fault"))
    b = threads.thread("B", "mprotect", LOW, made.length, RW)
    b.runs_to_end(letting=[a])
    if made.kind == "hint":
        threads.thread("C", "scan").runs_to_end(letting=[a])
    return [a]


# Walk


@shows("PUD", (*GATED, "swap"))
def the_upper_tables_go_before_the_walk(made, threads, gate):
    assert made.call("munmap", NEIGHBOUR, 4096) == 0
    a = made.faults(threads, before("do_handle_mm_fault"))
    return [a, made.unmaps(threads, after("free_pgtables"))]


@shows("PMD", ["huge"])
def a_huge_page_has_no_table(made, threads, gate):
    return [made.faults(threads)]


@shows("PMD", (*GATED, "swap"))
def the_table_goes_before_the_walk(made, threads, gate):
    a = made.faults(threads, before("do_handle_mm_fault"))
    return [a, made.unmaps(threads, after("free_pgtables"))]


# Gate


@shows("PTE_MAP_LOCK_SEQ1", GATED)
def a_writer_enters_before_the_gate(made, threads, gate):
    a = made.faults(threads, before(GATE, nth=gate))
    return [a, made.enters(threads)]


@shows("PTE_MAP_LOCK_PMD", GATED)
def the_table_goes_behind_the_first_check(made, threads, gate):
    a = made.faults(threads, before(GATE, nth=gate)).runs_until(IN_GATE)
    return [a, made.unmaps(threads, after("free_pgtables"))]


@shows("PTE_MAP_LOCK_PTL", GATED)
def the_page_table_lock_is_held(made, threads, gate):
    a = made.faults(threads, before(GATE, nth=gate))
    b = threads.thread("B", "dontneed", AREA, 4096)
    return [a, b.runs_until(after("spin_lock", inside="zap_ptes"))]


@shows("PTE_MAP_LOCK_SEQ2", GATED)
def a_writer_enters_within_the_gate(made, threads, gate):
    a = made.faults(threads, before(GATE, nth=gate)).runs_until(IN_GATE)
    return [a, made.enters(threads)]


# Handlers


@shows("ANON_VMA", ["write", "copy", "file copy"])
@shows("ANON_VMA", ["read"], SPF_VMA)
@shows("ABORT_ANON_VMA", ["read", "write", "copy"], ["vma-lock"])
def the_vma_has_no_anon_vma(made, threads, gate):
    made.maps(NEW)
    made.address = NEW
    if made.kind == "copy":
        assert made.read(NEW) == 0
    return [made.faults(threads)]


@shows("SWAP", ["swap"])
@shows("RETRY", ["swap"], ["vma-lock"])
def swapped_pages_are_left_to_the_locked_path(made, threads, gate):
    return [made.faults(threads)]


@shows("RECLAIM", ["write", "copy", "file copy"])
@shows("RETRY", ["write", "copy"], VMA_LOCKED)
@shows("RETRY", ["file copy"], ["vma-refcount"])
def no_frame_is_free(made, threads, gate):
    taken = take_all_frames(made)
    a = made.faults(threads, before("do_locked_fault"))
    put_back(made, taken)
    return [a]


@shows("RETRY", ["read"], VMA_LOCKED)
def no_frame_is_free_for_a_table(made, threads, gate):
    made.address = LOW
    return no_frame_is_free(made, threads, gate)


@shows("USERFAULTFD", ["read", "write"])
def a_monitor_has_to_bring_the_page(made, threads, gate):
    ctx = made.call("open")
    assert made.call("register", ctx, AREA, 16 << 12, MISSING) == 0
    a = made.faults(threads, waits())
    assert made.call("unregister", ctx, AREA, 16 << 12) == 0
    return [a]


@shows("USERFAULTFD", ["reuse", "copy"])
@shows("RETRY", ["reuse"], ["vma-refcount"])
def a_monitor_has_protected_the_page(made, threads, gate):
    ctx = made.call("open")
    assert made.call("register", ctx, AREA, 16 << 12, WP) == 0
    assert made.call("writeprotect", ctx, FAULT_AT, 4096, int(UffdCopy.WP)) == 0
    a = made.faults(threads, waits())
    assert made.call("unregister", ctx, AREA, 16 << 12) == 0
    return [a]


@shows("FAULT", ["file read", "file copy"])
def a_writer_enters_before_the_file_is_asked(made, threads, gate):
    a = made.faults(threads, before("do_fault"))
    return [a, made.enters(threads)]


@shows("PAGE_CACHE", ["file read", "file copy"])
def the_file_is_short_for_now(made, threads, gate):
    assert made.call("ftruncate", made.in_file, 4096) == 0
    a = made.faults(threads, before("do_locked_fault"))
    assert made.call("ftruncate", made.in_file, PAGES << 12) == 0
    assert made.call("pwrite", made.in_file, FAULT_AT - LOW, READS["file read"]) == 0
    return [a]


@shows("PAGE_LOCK", ["file read", "file copy"])
@shows("RETRY", ["file read", "shared write", "shmem"], ["vma-refcount"])
def somebody_has_the_page_locked(made, threads, gate):
    address, page = made.cached_page()
    page["flags"] |= int(Pg.LOCKED)
    a = made.faults(threads, waits())
    made.engine.call("unlock_page", address)
    return [a]


@shows("RETRY", ["swap"], ["vma-refcount"])
def somebody_brings_the_page_back(made, threads, gate):
    b = threads.thread("B", "read", FAULT_AT).runs_until(after("lock_page_or_retry"))
    return [made.faults(threads, waits()), b]


@shows("MMU_NOTIFIER", ["copy"])
def a_subscriber_registers(made, threads, gate):
    b = threads.thread("B", "subscribe").runs_until(after("rcu_sync_enter"))
    a = made.faults(threads, before("percpu_down_read_trylock"))
    return [a, b.runs_until(after("percpu_down_write"))]


# Locks of VMAs


@shows("ABORT_SEQ", ANON, VMA_LOCKED)
@shows("ABORT_SEQ", FILE, ["vma-refcount"])
def a_writer_has_the_vma_locked(made, threads, gate):
    b = made.splits(threads, LOCKED)
    return [made.faults(threads), b]


@shows("ABORT_BUSY", ANON, VMA_LOCKED)
@shows("ABORT_BUSY", FILE, ["vma-refcount"])
def a_writer_is_about_to_lock_the_vma(made, threads, gate):
    b = made.splits(threads, LOCKING[made.protocol])
    return [made.faults(threads), b]


@shows("ABORT_SEQ_RECHECK", ANON, VMA_LOCKED)
@shows("ABORT_SEQ_RECHECK", FILE, ["vma-refcount"])
def a_writer_locks_the_vma_between_two_looks(made, threads, gate):
    a = made.faults(threads, TAKING[made.protocol])
    return [a, made.splits(threads, LOCKED)]


@shows("ABORT_RANGE", ANON, VMA_LOCKED)
@shows("ABORT_RANGE", FILE, ["vma-refcount"])
def the_vma_is_split_before_it_is_locked(made, threads, gate):
    a = made.faults(threads, TAKING[made.protocol])
    made.splits(threads).runs_to_end()
    return [a]


@shows("MISS", ANON, VMA_LOCKED)
@shows("MISS", FILE, ["vma-refcount"])
def the_vma_goes_before_it_is_locked(made, threads, gate):
    a = made.faults(threads, after("__find_vma", inside="lock_vma_under_rcu"))
    if made.protocol == "vma-lock":
        a.runs_until(TAKING[made.protocol])
    return [a, made.unmaps(threads, after("mmap_write_downgrade"))]


@shows("ABORT_MM", ["read", "write"], ["vma-refcount"])
def the_vma_is_another_processes_before_it_is_locked(made, threads, gate):
    # or A would have to take an IPI: neither pages go nor the table
    assert made.call("dontneed", AREA, 4096) == 0
    made.maps(NEW)
    child = made.call("fork")
    made.engine.call("switch_mm", made.segment.cpu(2), child)
    assert made.call("munmap", LOW, made.length) == 0
    a = made.faults(threads, after("__find_vma", inside="lock_vma_under_rcu"))
    made.unmapped = True
    assert made.call("munmap", LOW, made.length, cpu=1) == 0
    # a CPU uses the VMA that it has freed last first
    made.engine.call("switch_mm", made.segment.cpu(1), child)
    assert made.call("mmap", LOW, made.length, RW, FIXED, cpu=1) == LOW
    return [a]


@shows("ABORT_USERFAULTFD", ANON, ["vma-lock"])
def the_vma_has_a_monitor(made, threads, gate):
    ctx = made.call("open")
    assert made.call("register", ctx, LOW, made.length, WP) == 0
    return [made.faults(threads)]


# All of them


@pytest.fixture(scope="session")
def process_under(own_cache):
    """Return a function that makes a process for a protocol and a kind, or begins it afresh."""
    made = {}

    def make(protocol, kind):
        if (protocol, kind) in made:
            made[protocol, kind].begin()
        else:
            made[protocol, kind] = Faulting(protocol, kind, stepped(protocol))
        return made[protocol, kind]

    yield make
    for process in made.values():
        process.segment.close()


def give_up(made, way, gate):
    """Run the script of one way; A has the result of a locked fault then."""
    with Threads(made) as threads:
        a, *others = SCRIPTS[made.protocol, way, made.kind](made, threads, gate)
        result = a.runs_to_end(letting=others)
        for other in others:
            other.runs_to_end(letting=[a])
    read = made.kind in READS
    value = READS[made.kind] if read else 7
    if made.unmapped:
        assert result == ((-EFAULT, 0) if read else -EFAULT)
    else:
        assert result == ((0, value) if read else 0)
        assert made.events(0).keys() & {event.name for event in KINDS[made.kind]}
        assert made.read(made.address) == value


@pytest.mark.parametrize(("protocol", "way", "kind"), sorted(SCRIPTS))
def test_a_fault_gives_up(process_under, protocol, way, kind):
    for gate in range(1, GATES.get(kind, 1) + 1 if way.startswith("PTE_MAP_LOCK") else 2):
        made = process_under(protocol, kind)
        give_up(made, way, gate)
        found = made.given_up()
        if way == "MISS":
            # there is nothing when it looks again
            assert found.pop("ABORT_UNMAPPED") == 1
        assert found == {way: 1}
        assert check_segment(made.segment) == []


def table(name):
    """Rows of a table of docs/protocols.md: the way, and the mark of each kind."""
    text = DOCS.read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split("<!--")[0]
    head, _, *rows = ([c.strip().strip("`") for c in line.split("|")[1:-1]]
                      for line in text.strip().splitlines())  # fmt: skip
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.parametrize("name", MARKS)
def test_the_tables_show_what_is_scripted(name):
    marked = {
        (protocol, way, kind)
        for way, marks in table(name).items()
        for kind, mark in marks.items()
        for protocol in MARKS[name].get(mark, [])
    }
    protocols = MARKS[name]["x"]
    assert marked == {cell for cell in SCRIPTS if cell[0] in protocols}


def test_the_tables_have_every_way_and_every_kind():
    spf, vma_lock = (table(name) for name in MARKS)
    assert list(spf) == [e.name.removeprefix("SPF_ABORT_") for e in ABORT_REASONS]
    ways = {e.name.removeprefix("VMA_LOCK_") for e in Event if e.name.startswith("VMA_LOCK_")}
    assert set(vma_lock) == ways - {"ATTEMPT", "SUCCESS", "ABORT"}
    for marks in (*spf.values(), *vma_lock.values()):
        assert list(marks) == list(KINDS)
        assert set(marks.values()) <= {"-", "x", "v", "l", "r"}
        assert set(marks.values()) != {"-"}
