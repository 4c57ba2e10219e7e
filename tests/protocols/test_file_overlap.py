# SPDX-License-Identifier: MIT
"""Faults in mappings of files beside writers, truncation and each other.

A is the faulting thread, B the other one.  Under `spf`, each way to give up is scripted and moves
its counter and no other; whatever aborts, the retry leaves A with a result of the locked path.
"""

import random

import pytest
from mutants import mutant_engine
from protocol_sets import GUARDED

from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.engines.script import after, before, waits
from spfemu.engines.stepped import StepEngine
from spfemu.events import Event
from spfemu.layout import ADDRESS_SPACE, FILE, PAGE
from spfemu.mm.flags import PMD_SIZE, Errno, FileOps, Map, Pg, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process, Threads, program

AREA = 1 << 40
PAGE_1 = AREA + 4096
ELSEWHERE = 1 << 41
PAGES = 4
SHARED, PRIVATE = int(Map.SHARED), int(Map.PRIVATE)
READ = int(Prot.READ)
EFAULT, EIO = int(Errno.EFAULT), int(Errno.EIO)


@pytest.fixture
def file(spf):
    """A file, privately mapped, page 0 of which has been written: tables and anon_vma are there."""
    made = spf.file(PAGES)
    spf.map_file(AREA, made, PAGES, PRIVATE)
    spf.write(AREA, 1)
    return made


def writer(threads):
    """Return B about to make a whole write section that changes nothing where A faults."""
    return threads.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)


def page_of(process, file, index):
    """PAGE of a page in the cache of a file, as an address and a record."""
    segment = process.segment
    offset = segment.word(file + FILE.f_mapping) - segment.address["mappings"]
    mapping = segment.mappings[offset // ADDRESS_SPACE.SIZE]
    address = segment.word(int(mapping["i_pages"]) + 8 * index)
    return address, segment.pages[(address - segment.address["vmemmap"]) // PAGE.SIZE]


# It succeeds.


def test_a_read_of_a_cached_page_takes_no_lock(spf, threads, file):
    a = threads.thread("A", "read", PAGE_1)
    assert a.runs_to_end() == (0, 101)
    assert spf.aborts() == {}
    events = spf.events(0)
    assert events["SPF_ATTEMPT"] == events["SPF_ATTEMPT_FILE"] == events["FILE_PAGE"] == 1
    # pages 2 and 3 have come along
    assert events["FILE_AROUND"] == 2
    assert "FAULT_CLASSIC" not in events


def test_a_write_to_a_private_mapping_takes_no_lock(spf, threads, file):
    assert threads.thread("A", "write", PAGE_1, 7).runs_to_end() == 0
    assert spf.aborts() == {}
    assert spf.events(0)["FILE_COW"] == 1
    assert spf.read(PAGE_1) == 7


def test_a_write_to_a_page_that_was_read_takes_no_lock(spf, threads, file):
    assert spf.read(PAGE_1) == 101
    assert threads.thread("A", "write", PAGE_1, 7).runs_to_end() == 0
    assert spf.aborts() == {}
    assert spf.events(0)["WP_COPY"] == 1


# Each way to give up.


def test_what_is_not_in_memory_is_left_to_the_locked_path(spf, threads, file):
    assert spf.call("ftruncate", file, (PAGES + 60) << 12) == 0
    spf.map_file(ELSEWHERE, file, PAGES + 60, PRIVATE)
    spf.write(ELSEWHERE, 1)
    a = threads.thread("A", "read", ELSEWHERE + ((PAGES + 50) << 12))
    assert a.runs_to_end() == (0, 0)
    assert spf.aborts() == {"PAGE_CACHE": 1}
    assert spf.events(0)["PGMAJFAULT"] == 1


def test_behind_the_end_only_the_locked_path_gives_a_sigbus(spf, threads, file):
    assert spf.call("ftruncate", file, 4096) == 0
    assert threads.thread("A", "write", PAGE_1, 7).runs_to_end() == -EIO
    assert spf.aborts() == {"PAGE_CACHE": 1}
    assert spf.events(0)["FAULT_SIGBUS"] == 1


def test_a_page_that_is_truncated_between_lookup_and_lock(spf, threads, file):
    a = threads.thread("A", "write", PAGE_1, 7)
    b = threads.thread("B", "ftruncate", file, 4096)
    a.runs_until(after("xa_load", inside="filemap_fault_speculative"))
    b.runs_to_end()
    assert a.runs_to_end() == -EIO
    assert spf.aborts() == {"PAGE_CACHE": 1}


def test_truncation_waits_for_the_page_that_a_fault_is_mapping(spf, threads, file):
    a = threads.thread("A", "read", PAGE_1)
    b = threads.thread("B", "ftruncate", file, 4096)
    a.runs_until(after("pte_map_lock", inside="filemap_map_pages"))
    b.runs_until(waits())
    assert a.runs_to_end(letting=[b]) in ((0, 101), (-EIO, 0))
    b.runs_to_end()
    assert spf.aborts() in ({}, {"PAGE_CACHE": 1})
    assert spf.call("read", PAGE_1) == (-EIO, 0)


def test_a_copy_made_while_the_file_is_cut_goes_with_it(spf, threads, file):
    """The page is locked until the copy is mapped, so the second unmapping finds the copy."""
    a = threads.thread("A", "write", PAGE_1, 7)
    b = threads.thread("B", "ftruncate", file, 4096)
    a.runs_until(before("finish_fault"))
    b.runs_until(waits())
    assert a.runs_to_end(letting=[b]) in (0, -EIO)
    b.runs_to_end()
    assert spf.call("read", PAGE_1) == (-EIO, 0)


def test_a_locked_page_is_not_waited_for(spf, threads, file):
    address, page = page_of(spf, file, 1)
    page["flags"] |= int(Pg.LOCKED)
    a = threads.thread("A", "write", PAGE_1, 7)
    a.runs_until(waits())
    assert spf.aborts() == {"PAGE_LOCK": 1}
    # the wait is without the mmap lock
    assert spf.call("mprotect", AREA, 4096, READ) == 0
    assert spf.events(0)["PAGE_LOCK_RETRY"] == 1
    spf.engine.call("unlock_page", address)
    assert a.runs_to_end() == 0
    assert spf.read(PAGE_1) == 7


def test_the_second_time_the_locked_path_waits_with_its_lock(spf, threads, file):
    address, page = page_of(spf, file, 1)
    page["flags"] |= int(Pg.LOCKED)
    a = threads.thread("A", "write", PAGE_1, 7)
    a.runs_until(waits())
    spf.engine.call("unlock_page", address)
    a.runs_until(before("trylock_page"))
    page["flags"] |= int(Pg.LOCKED)
    a.runs_until(waits())
    b = threads.thread("B", "mprotect", AREA, 4096, READ)
    b.runs_until(waits())
    spf.engine.call("unlock_page", address)
    assert a.runs_to_end() == 0
    assert b.runs_to_end() == 0
    assert spf.events(0)["PAGE_LOCK_RETRY"] == 1


BETWEEN_COPY_AND_FILE = [
    after("mmap_seq_read_check", inside="do_speculative_fault"),
    after("speculative_page_walk_end"),
    before("speculation_holds"),
    before("read_once", inside="speculation_holds"),
]
BEFORE_SEQ1 = [
    after("speculation_holds"),
    after("trylock_page"),
    before("pte_map_lock"),
    before("mmap_seq_read_check", inside="pte_map_lock_speculative"),
]
BEFORE_SEQ2 = [
    after("mmap_seq_read_check", inside="pte_map_lock_speculative"),
    before("mmap_seq_read_check", nth=2, inside="pte_map_lock_speculative"),
]
WINDOWS = [
    *(("FAULT", point) for point in BETWEEN_COPY_AND_FILE),
    *(("PTE_MAP_LOCK_SEQ1", point) for point in BEFORE_SEQ1),
    *(("PTE_MAP_LOCK_SEQ2", point) for point in BEFORE_SEQ2),
]


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize(("reason", "point"), WINDOWS, ids=str)
def test_a_writer_shows_where_it_overlaps(spf, threads, file, reason, point, call):
    """What it meets is, for a write, the copy of the page, for a read the look around it."""
    a = threads.thread("A", call, PAGE_1, *([7] if call == "write" else []))
    b = writer(threads)
    a.runs_until(point)
    b.runs_to_end()
    assert a.runs_to_end() == ((0, 101) if call == "read" else 0)
    assert spf.aborts() == {reason: 1}


def test_a_writer_between_the_look_around_and_the_page_itself(spf, threads, file):
    """Nothing around is in the cache but the page, and that is locked for a moment."""
    address, page = page_of(spf, file, 1)
    assert spf.call("ftruncate", file, 2 << 12) == 0
    a = threads.thread("A", "read", PAGE_1)
    b = writer(threads)
    page["flags"] |= int(Pg.LOCKED)
    a.runs_until(after("do_fault_around"))
    spf.engine.call("unlock_page", address)
    b.runs_to_end()
    assert a.runs_to_end() == (0, 101)
    assert spf.aborts() == {"FAULT": 1}


def test_a_taken_page_table_lock_ends_the_attempt(spf, threads, file):
    a = threads.thread("A", "write", PAGE_1, 7)
    b = threads.thread("B", "dontneed", AREA, 4096)
    b.runs_until(after("spin_lock", inside="zap_ptes"))
    a.runs_until(after("spin_trylock", inside="pte_map_lock_speculative"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert spf.aborts() == {"PTE_MAP_LOCK_PTL": 1}


@pytest.mark.parametrize("ops", [FileOps.GENERIC, FileOps.SHMEM], ids=["file", "shmem"])
def test_a_write_to_a_shared_mapping_does_not_speculate(spf, threads, ops):
    made = spf.file(PAGES, ops)
    spf.map_file(AREA, made, PAGES, SHARED)
    spf.write(AREA, 1)
    assert threads.thread("A", "write", PAGE_1, 7).runs_to_end() == 0
    assert spf.aborts() == {"NO_SPECULATE": 1}


def test_a_read_speculates_in_a_shared_mapping_of_a_file_only(spf, threads):
    for at, ops in ((AREA, FileOps.GENERIC), (ELSEWHERE, FileOps.SHMEM)):
        spf.map_file(at, spf.file(PAGES + 40, ops), PAGES + 40, SHARED)
        spf.read(at)
    far = 20 << 12
    assert threads.thread("A", "read", AREA + far).runs_to_end() == (0, 120)
    assert spf.aborts() == {}
    assert threads.thread("B", "read", ELSEWHERE + far).runs_to_end() == (0, 120)
    assert spf.aborts(1) == {"NO_SPECULATE": 1}


def test_the_first_copy_in_a_mapping_and_the_first_touch_of_a_table(spf, threads):
    made = spf.file(PAGES)
    spf.map_file(AREA, made, PAGES, PRIVATE)
    assert threads.thread("A", "read", AREA).runs_to_end() == (0, 100)
    assert spf.aborts() == {"PUD": 1}
    assert threads.thread("B", "write", AREA, 7).runs_to_end() == 0
    assert spf.aborts(1) == {"ANON_VMA": 1}


def test_a_missing_table_is_made_by_the_locked_path_which_alone_sends_signals(spf, threads):
    made = spf.file(PAGES)
    spf.map_file(AREA, made, 2 * PMD_SIZE >> 12, PRIVATE)
    spf.read(AREA)
    assert threads.thread("A", "read", AREA + PMD_SIZE).runs_to_end() == (-Errno.EIO, 0)
    assert spf.aborts() == {"PMD": 1}


# The file is gone, but not yet.


def test_a_file_outlives_a_fault_that_asks_it(spf, threads, file):
    """Unmapped and closed, the file stays until the fault has left its read-side section (M05)."""
    # nothing of it is mapped and its table is needed: munmap has no flush for which it would wait
    assert spf.call("dontneed", AREA, 4096) == 0
    spf.map(AREA + (PAGES << 12), 1)
    a = threads.thread("A", "write", PAGE_1, 7)
    b = threads.thread("B", "munmap", AREA, PAGES << 12)
    a.runs_until(after("speculation_holds"))
    b.runs_to_end()
    assert spf.call("close", file) == 0
    for cpu in (1, 2):
        spf.engine.call("rcu_core", spf.segment.cpu(cpu))
        spf.engine.call("rcu_core", spf.segment.cpu(cpu))
    assert spf.segment.word(file + FILE.f_count) == 1
    assert a.runs_to_end() == -EFAULT
    assert spf.aborts() == {"PTE_MAP_LOCK_SEQ1": 1}
    spf.engine.call("rcu_barrier", spf.segment.cpu(1))
    assert spf.segment.word(file + FILE.f_count) == 0


# Under the lock of a VMA.


@pytest.mark.parametrize(
    ("protocol", "expected"), [("vma-lock", "ABORT_NOT_ANON"), ("vma-refcount", "SUCCESS")]
)
def test_faults_on_files_under_the_lock_of_a_vma(engine_of, protocol, expected):
    with_file = Process(engine_of(protocol), Segment.create(Geometry(nr_cpus=3)))
    made = with_file.file(PAGES)
    for at, flags in ((AREA, PRIVATE), (ELSEWHERE, SHARED)):
        with_file.map_file(at, made, PAGES, flags)
        with_file.write(at, 1)
    assert with_file.call("read", PAGE_1, cpu=0) == (0, 101)
    assert with_file.call("write", PAGE_1, 3, cpu=0) == 0
    assert with_file.call("write", ELSEWHERE + 4096, 4, cpu=0) == 0
    assert with_file.vma_lock() == {expected: 3}
    assert check_segment(with_file.segment) == []


def test_the_lock_of_a_vma_is_not_held_over_the_wait_for_a_page(engine_of):
    process = Process(engine_of("vma-refcount"), Segment.create(Geometry(nr_cpus=3)))
    made = process.file(PAGES)
    process.map_file(AREA, made, PAGES, PRIVATE)
    process.write(AREA, 1)
    address, page = page_of(process, made, 1)
    page["flags"] |= int(Pg.LOCKED)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE_1, 7)
        a.runs_until(waits())
        # a writer of the VMA need not wait
        assert process.call("mprotect", AREA, 4096, READ) == 0
        process.engine.call("unlock_page", address)
        assert a.runs_to_end() == 0
    assert process.vma_lock() == {"RETRY": 1}
    assert check_segment(process.segment) == []


# Any order.

ORDERS = {
    "read and cut": [("A", "read", PAGE_1), ("B", "ftruncate", 0, 4096), ("C", "write", PAGE_1, 7)],
    "copy and cut": [("A", "write", PAGE_1, 7), ("B", "ftruncate", 0, 0), ("C", "read", AREA)],
    "cut and unmap": [
        ("A", "write", PAGE_1, 7),
        ("B", "ftruncate", 0, 4096),
        ("C", "munmap", AREA, PAGES << 12),
    ],
    "cut and protect": [
        ("A", "read", PAGE_1),
        ("B", "ftruncate", 0, 4096),
        ("C", "mprotect", PAGE_1, 4096, READ),
    ],
    "write and clean": [
        ("A", "write", PAGE_1, 7),
        ("B", "msync", AREA, PAGES << 12),
        ("C", "write", PAGE_1, 8),
    ],
    "remove and drop": [
        ("A", "write", PAGE_1, 7),
        ("B", "remove", PAGE_1, 4096),
        ("C", "dontneed", AREA, PAGES << 12),
    ],
}
SEEDS = range(8)


@pytest.mark.parametrize("flags", [SHARED, PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("protocol", GUARDED)
def test_invariants_hold_in_random_orders(engine_of, protocol, name, flags):
    segment = Segment.create(Geometry(nr_cpus=3))
    process = Process(engine_of(protocol), segment)
    for seed in SEEDS:
        process.begin(seed)
        made = process.file(PAGES)
        process.map_file(AREA, made, PAGES, flags)
        process.write(AREA, 1)
        if seed % 2:
            process.read(PAGE_1)
        calls = [
            (who, call, made, *rest[1:]) if call == "ftruncate" else (who, call, *rest)
            for who, call, *rest in ORDERS[name]
        ]
        with Threads(process) as threads:
            cpus = [threads.thread(*call) for call in calls]
            schedule = threads.runs_randomly(seed)
            results = [cpu.result for cpu in cpus]
        assert check_segment(segment) == [], (seed, schedule)
        allowed = {0, -EIO, -EFAULT, -int(Errno.EACCES)}
        found = {r if isinstance(r, int) else r[0] for r in results}
        assert found <= allowed, (seed, schedule, results)
        if calls[1][1] == "ftruncate" and calls[2][1] != "munmap":
            # whatever came first, behind the end is nothing now
            assert process.call("read", PAGE_1) == (-EIO, 0), (seed, schedule)
    segment.close()


# The same program gives the same under every protocol.

PROGRAMS = 12
CALLS = 120
FIRST = (1 << 40) + PMD_SIZE - (16 << 12)
"""The area lies across two page tables."""
AREA_PAGES = 32
FILE_PAGES = 24


def random_call(choose, files):
    """Choose a call on the area or on one of the files."""
    first, last = sorted(choose.sample(range(AREA_PAGES + 1), 2))
    address, length = FIRST + (first << 12), (last - first) << 12
    name = choose.choice(
        ["write"] * 8 + ["read"] * 8 + ["mmap_file"] * 4
        + ["munmap", "mprotect", "dontneed", "remove", "msync", "ftruncate", "pwrite", "mmap"]
    )  # fmt: skip
    file = choose.choice(files)
    kind = choose.choice([SHARED, PRIVATE]) | int(Map.FIXED)
    arguments = {
        "write": (address, choose.getrandbits(60)),
        "read": (address,),
        "mmap_file": (address, length, choose.choice([RW, RW, READ]), kind, file,
                      choose.randrange(FILE_PAGES) << 12),
        "mmap": (address, length, RW, kind | int(Map.ANONYMOUS)),
        "munmap": (address, length),
        "mprotect": (address, length, choose.choice([RW, READ, 0])),
        "dontneed": (address, length),
        "remove": (address, length),
        "msync": (address, length),
        "ftruncate": (file, choose.choice([0, 5000, FILE_PAGES << 12, FILE_PAGES << 12])),
        "pwrite": (file, choose.randrange(FILE_PAGES) << 12, choose.getrandbits(60)),
    }[name]  # fmt: skip
    return name, arguments


def do_random_calls(process, seed):
    """Make a program's calls; returns their results, the maps and all data at the end."""
    choose = random.Random(seed)
    files = [process.file(FILE_PAGES, ops) for ops in (FileOps.GENERIC, FileOps.SHMEM)]
    results = []
    for _ in range(CALLS):
        name, arguments = random_call(choose, files)
        results.append((name, process.call(name, *arguments, cpu=choose.randrange(3))))
    vmas = process.segment.vmas
    fields = ("vm_start", "vm_end", "vm_flags", "vm_pgoff", "vm_file")
    maps = sorted(tuple(int(v[f]) for f in fields) for v in vmas[vmas["slab_state"] == 1])
    # an unnamed file may be in another slot: when a slot is free again is the protocol's choice
    maps = [(*m[:4], files.index(m[4]) if m[4] in files else bool(m[4])) for m in maps]
    for start, end, *_ in maps:
        results += [process.call("read", address) for address in range(start, end, 4096)]
    return results, maps


@pytest.mark.parametrize("protocol", sorted(set(GUARDED) - {"classic"}))
def test_programs_do_what_they_do_under_classic(own_cache, protocol):
    engines = [NativeEngine(program(name)) for name in ("classic", protocol)]
    segment = Segment.create(Geometry(nr_cpus=3))
    speculated = 0
    for seed in range(PROGRAMS):
        found = []
        for engine in engines:
            process = Process(engine, segment)
            found.append(do_random_calls(process, seed))
            assert check_segment(segment) == [], seed
        assert found[0] == found[1], seed
        counts = segment.cpus["event"].sum(axis=0)
        speculated += counts[Event.FILE_PAGE] + counts[Event.FILE_COW]
    assert speculated > 0
    segment.close()


# System calls


def test_a_read_waits_for_a_page_that_is_being_read(spf, threads):
    """Until then the frame has what its last user left."""
    file = spf.call("create", 4096, int(FileOps.GENERIC))
    spf.map_file(AREA, file, 1, SHARED)
    spf.map(PAGE_1, 1)
    assert spf.call("write", PAGE_1, 7, cpu=0) == 0
    assert spf.call("dontneed", PAGE_1, 4096, cpu=0) == 0
    a = threads.thread("A", "read", AREA)
    b = threads.thread("B", "pread", file, 0)
    a.runs_until(before("read_page", inside="page_cache_ra"))
    assert b.runs_to_end(letting=[a]) == 0
    assert a.runs_to_end() == (0, 0)


# A mutant


@pytest.mark.parametrize(("mutant", "result"), [("", -EIO), ("cut_page_is_mapped", 0)])
def test_the_look_under_the_page_lock_is_needed(own_cache, mutant, result):
    """Without it, a fault copies a page that has been cut away, behind the end of the file."""
    engine = mutant_engine("classic", mutant) if mutant else StepEngine(program("classic"))
    process = Process(engine, Segment.create(Geometry(nr_cpus=3)))
    made = process.file(PAGES)
    process.map_file(AREA, made, PAGES, PRIVATE)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE_1, 7)
        b = threads.thread("B", "ftruncate", made, 4096)
        a.runs_until(after("find_get_page", inside="filemap_fault"))
        b.runs_to_end()
        assert a.runs_to_end() == result
