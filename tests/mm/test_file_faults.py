# SPDX-License-Identifier: MIT
"""What faults in mappings of files map, what calls do to it, and which counter says so.

One CPU at a time; races are in tests/protocols/test_file_overlap.py.
"""

from collections.abc import Iterator

import pytest
from file_machine import PRIVATE, READ, RW, SHARED, SHARED_ANON, FileMachine, page
from protocol_sets import STORMED

from spfemu.events import Event
from spfemu.layout import PAGE_SIZE, WORD
from spfemu.mm.filemap import READ_AROUND_PAGES, S_MAXBYTES
from spfemu.mm.flags import PAGE_KIND_MASK, PMD_SIZE, Errno, Madv, Msync, PageKind, Pg, Pte

SIGBUS = -Errno.EIO
AROUND = 16
"""Pages that a read fault maps at most: 64 KiB."""


@pytest.fixture(
    params=[
        *(("native", protocol, "rcu") for protocol in STORMED),
        ("native", "spf", "irq"),
        ("plain", "spf", "rcu"),
    ],
    ids=" ".join,
)
def machine(request: pytest.FixtureRequest) -> Iterator[FileMachine]:
    """A machine whose segment is checked when the test has ended."""
    made = FileMachine(*request.param)
    yield made
    found = made.violations()
    made.close()
    assert found == []


both_kinds = pytest.mark.parametrize("kind", ["file", "shmem"])


def cached(machine: FileMachine, file: int) -> int:
    return int(machine.mapping(file)["nrpages"])


def mapped(machine: FileMachine, pages: int = 2 * AROUND) -> list[int]:
    """Which pages from page 0 on are mapped."""
    return [i for i in range(pages) if machine.entry(i)]


def put(machine: FileMachine, file: int, *pages: int) -> None:
    """Write each page's number plus 100 into the file."""
    for index in pages:
        assert machine.on(0, "sys_pwrite", file, index * PAGE_SIZE, index + 100) == 0


def content(machine: FileMachine, file: int, index: int) -> int:
    return int(machine.on(0, "sys_pread", file, index * PAGE_SIZE))


# Reads.


@both_kinds
@pytest.mark.parametrize("flags", [SHARED, PRIVATE], ids=["shared", "private"])
def test_a_read_maps_the_page_of_the_cache(machine, kind, flags):
    file = machine.create(kind=kind)
    put(machine, file, 2)
    machine.map(file, flags=flags)
    assert machine.read(2) == (0, 102)
    frame = machine.frame(2)
    assert frame["flags"] & PAGE_KIND_MASK == PageKind.FILE
    assert (frame["mapcount"], frame["refcount"], frame["index"]) == (1, 2, 2)
    counters = machine.segment.cpus["rss_file" if kind == "file" else "rss_shmem"]
    assert counters.sum() == 1
    assert machine.total(Event.FILE_PAGE) == 1
    assert bool(machine.entry(2) & Pte.RW) == (kind == "shmem" and flags == SHARED)


def test_a_read_of_what_is_not_in_memory_reads_around_it(machine):
    file = machine.create(pages=100)
    machine.map(file, pages=100)
    assert machine.read(50) == (0, 0)
    assert cached(machine, file) == READ_AROUND_PAGES
    assert machine.total(Event.PGMAJFAULT) == 1
    # its own page only: the others have come into the cache after the look around
    assert mapped(machine, 100) == [50]
    assert machine.read(51) == (0, 0)
    assert mapped(machine, 100) == list(range(48, 64))
    assert machine.total(Event.FILE_AROUND) == AROUND - 2
    assert machine.total(Event.PGMAJFAULT) == 1


def test_reads_at_random_read_one_page(machine):
    file = machine.create(pages=100)
    machine.map(file, pages=100)
    assert machine.on(0, "sys_madvise", page(0), 100 * PAGE_SIZE, int(Madv.RANDOM)) == 0
    assert machine.read(50) == (0, 0)
    assert cached(machine, file) == 1


def test_shared_memory_is_not_read_ahead(machine):
    file = machine.create(pages=100, kind="shmem")
    machine.map(file, pages=100)
    assert machine.read(50) == (0, 0)
    assert cached(machine, file) == 1
    assert machine.total(Event.PGMAJFAULT) == 0


def test_fault_around_keeps_to_the_mapping_and_to_the_file(machine):
    file = machine.create(pages=12)
    put(machine, file, *range(12))
    machine.map(file, first=3, pages=20, at=5)
    assert machine.read(8) == (0, 106)
    # the mapping begins at page 5 with page 3 of the file, which has 12
    assert mapped(machine) == list(range(5, 14))
    assert [machine.read(i)[1] for i in range(5, 14)] == list(range(103, 112))
    assert machine.total(Event.FILE_AROUND) == 8


def test_fault_around_leaves_out_what_is_locked_or_mapped(machine):
    file = machine.create(pages=16)
    put(machine, file, *range(16))
    machine.map(file, pages=16, flags=PRIVATE)
    assert machine.write(3, 1) == 0
    locked = machine.on(0, "find_get_page", int(machine.file(file)["f_mapping"]), 7)
    assert machine.call("trylock_page", locked) == 1
    assert machine.read(0) == (0, 100)
    assert mapped(machine) == [i for i in range(16) if i != 7]
    assert machine.read(3) == (0, 1)
    machine.call("unlock_page", locked)
    machine.on(0, "put_page", locked)


# Writes.


@both_kinds
def test_a_write_to_a_private_mapping_makes_a_copy(machine, kind):
    file = machine.create(kind=kind)
    put(machine, file, 1)
    machine.map(file, flags=PRIVATE)
    machine.map(file, flags=SHARED, at=20)
    assert machine.write(1, 5) == 0
    assert machine.frame(1)["flags"] & PAGE_KIND_MASK == PageKind.ANON
    assert (machine.read(1), machine.read(21)) == ((0, 5), (0, 101))
    assert content(machine, file, 1) == 101
    assert machine.total(Event.FILE_COW) == 1
    # a page that has been read is copied too
    assert machine.read(2) == (0, 0)
    assert machine.write(2, 6) == 0
    assert machine.total(Event.WP_COPY) == 1
    assert (machine.read(2), content(machine, file, 2)) == ((0, 6), 0)
    # later writes to the file do not show where it was copied
    put(machine, file, 2)
    assert machine.read(2) == (0, 6)


@both_kinds
def test_the_rest_of_a_copied_page_is_that_of_the_file(machine, kind):
    file = machine.create(kind=kind)
    assert machine.on(0, "sys_pwrite", file, 8 * WORD, 77) == 0
    machine.map(file, flags=PRIVATE)
    assert machine.write(0, 1) == 0
    assert machine.on(0, "user_read", page(0) + 8 * WORD) == (0, 77)


@both_kinds
def test_a_write_to_a_shared_mapping_is_one_to_the_file(machine, kind):
    file = machine.create(kind=kind)
    machine.map(file)
    machine.map(file, first=1, pages=2, at=20)
    assert machine.write(1, 5) == 0
    assert (machine.read(20), content(machine, file, 1)) == ((0, 5), 5)
    assert machine.total(Event.FILE_SHARED) == 1
    assert machine.frame(1)["flags"] & Pg.DIRTY


def test_a_write_to_a_page_that_was_read_makes_it_dirty(machine):
    file = machine.create()
    machine.map(file)
    assert machine.read(1) == (0, 0)
    assert not machine.frame(1)["flags"] & Pg.DIRTY
    assert machine.write(1, 5) == 0
    assert machine.frame(1)["flags"] & Pg.DIRTY
    assert machine.total(Event.FILE_MKWRITE) == 1
    assert machine.total(Event.WP_COPY) == 0


def test_shared_memory_is_written_without_a_second_fault(machine):
    file = machine.create(kind="shmem")
    machine.map(file)
    assert machine.read(1) == (0, 0)
    faults = machine.total(Event.PGFAULT)
    assert machine.write(1, 5) == 0
    assert machine.total(Event.PGFAULT) == faults
    # what was written through the mapping makes the page dirty when it is unmapped
    frame = machine.frame(1)
    machine.unmap()
    assert frame["flags"] & Pg.DIRTY


# fork.


@both_kinds
def test_parent_and_child_share_what_is_mapped_shared(machine, kind):
    file = machine.create(kind=kind)
    machine.map(file)
    assert machine.write(1, 5) == 0
    child = machine.fork()
    machine.on(1, "switch_mm", child)
    assert machine.write(1, 6, cpu=1) == 0
    assert machine.read(1, cpu=0) == (0, 6)
    assert machine.write(2, 7, cpu=0) == 0
    assert machine.read(2, cpu=1) == (0, 7)


def test_shared_anonymous_memory_is_shared_with_children(machine):
    assert machine.on(0, "sys_mmap", page(0), 8 * PAGE_SIZE, RW, SHARED_ANON) == page(0)
    child = machine.fork()
    machine.on(1, "switch_mm", child)
    assert machine.write(3, 9, cpu=1) == 0
    assert machine.read(3, cpu=0) == (0, 9)


@both_kinds
def test_parent_and_child_copy_what_is_mapped_privately(machine, kind):
    file = machine.create(kind=kind)
    put(machine, file, 0, 1)
    machine.map(file, flags=PRIVATE)
    assert machine.write(0, 5) == 0
    assert machine.read(1) == (0, 101)
    child = machine.fork()
    # with an anon_vma all entries are copied, those of the file's pages too
    counter = "rss_file" if kind == "file" else "rss_shmem"
    assert machine.segment.mms[counter][1] == machine.segment.mms[counter][0] > 0
    machine.on(1, "switch_mm", child)
    assert machine.write(0, 6, cpu=1) == 0
    assert machine.write(1, 7, cpu=1) == 0
    assert (machine.read(0), machine.read(1)) == ((0, 5), (0, 101))
    assert (content(machine, file, 0), content(machine, file, 1)) == (100, 101)


def test_a_fork_copies_no_entries_of_mappings_without_private_pages(machine):
    file = machine.create()
    put(machine, file, 0)
    machine.map(file)
    assert machine.read(0) == (0, 100)
    tables = int(machine.mm["pgtables"])
    machine.fork()
    assert tables > 1
    assert machine.segment.mms["pgtables"][1] == 1


# The end of the file.


@both_kinds
@pytest.mark.parametrize("flags", [SHARED, PRIVATE], ids=["shared", "private"])
def test_behind_the_end_of_the_file_is_nothing(machine, kind, flags):
    file = machine.create(pages=2, kind=kind)
    machine.map(file, pages=4, flags=flags)
    assert machine.read(1) == (0, 0)
    assert machine.write(1, 3) == 0
    assert machine.read(2) == (SIGBUS, 0)
    assert machine.write(3, 1) == SIGBUS
    assert machine.total(Event.FAULT_SIGBUS) == 2
    assert machine.on(0, "sys_ftruncate", file, 3 * PAGE_SIZE - 100) == 0
    assert machine.read(2) == (0, 0)


@both_kinds
def test_truncation_takes_pages_away_wherever_they_are_mapped(machine, kind):
    file = machine.create(kind=kind)
    put(machine, file, *range(8))
    machine.map(file)
    machine.map(file, at=20, flags=PRIVATE)
    child = machine.fork()
    machine.on(1, "switch_mm", child)
    for cpu in (0, 1):
        for at in (0, 3, 7):
            assert machine.read(at, cpu=cpu) == (0, at + 100)
            assert machine.write(20 + at, 50 + cpu, cpu=cpu) == 0
    assert machine.on(0, "sys_ftruncate", file, 3 * PAGE_SIZE) == 0
    assert cached(machine, file) == 3
    for cpu in (0, 1):
        assert machine.read(0, cpu=cpu) == (0, 100)
        assert machine.read(20, cpu=cpu) == (0, 50 + cpu)
        for at in (3, 7):
            assert machine.read(at, cpu=cpu) == (SIGBUS, 0)
            # private copies go as well
            assert machine.read(20 + at, cpu=cpu) == (SIGBUS, 0)
    assert machine.total(Event.PAGES_TRUNCATED) == 5


@both_kinds
def test_a_file_that_grows_again_reads_as_zeros(machine, kind):
    file = machine.create(kind=kind)
    machine.map(file)
    for offset in (0, 10 * WORD, 11 * WORD, 4095 & -WORD, PAGE_SIZE):
        assert machine.on(0, "sys_pwrite", file, offset, -1) == 0
    assert machine.on(0, "sys_ftruncate", file, 10 * WORD + 3) == 0
    assert machine.on(0, "sys_ftruncate", file, 2 * PAGE_SIZE) == 0
    read = [machine.on(0, "user_read", page(0) + o) for o in (0, 80, 88, 4088, PAGE_SIZE)]
    assert read == [(0, -1), (0, 0xFFFFFF), (0, 0), (0, 0), (0, 0)]


def test_ftruncate_checks_its_arguments(machine):
    file = machine.create()
    assert machine.on(0, "sys_ftruncate", file, -1) == -Errno.EINVAL
    assert machine.on(0, "sys_ftruncate", file, S_MAXBYTES + 1) == -Errno.EFBIG
    reading = machine.on(0, "sys_open", file, 1)
    assert machine.on(0, "sys_ftruncate", reading, 0) == -Errno.EINVAL
    assert machine.mapping(file)["i_size"] == 8 * PAGE_SIZE


@pytest.mark.parametrize("index", [0, 511, 512, 511 << 9, 1 << 18, 1 << 27, (1 << 36) - 1])
def test_the_cache_finds_pages_wherever_they_are(machine, index):
    file = machine.create(pages=index + 1)
    put(machine, file, 0, index)
    assert content(machine, file, index) == index + 100
    machine.map(file, first=index, pages=1)
    assert machine.read(0) == (0, index + 100)
    assert cached(machine, file) == (1 if index == 0 else 2)
    assert machine.on(0, "sys_ftruncate", file, PAGE_SIZE) == 0
    assert cached(machine, file) == 1
    assert content(machine, file, 0) == 100


# Calls.


@both_kinds
def test_dontneed_drops_entries_and_private_copies_only(machine, kind):
    file = machine.create(kind=kind)
    put(machine, file, 1)
    machine.map(file)
    machine.map(file, at=20, flags=PRIVATE)
    assert machine.write(1, 5) == 0
    assert machine.write(21, 6) == 0
    for at in (0, 20):
        assert machine.on(0, "sys_madvise", page(at), 8 * PAGE_SIZE, int(Madv.DONTNEED)) == 0
        assert machine.entry(at + 1) == 0
    assert machine.read(1) == machine.read(21) == (0, 5)


@both_kinds
def test_remove_makes_a_hole_and_leaves_private_copies(machine, kind):
    file = machine.create(kind=kind)
    put(machine, file, *range(8))
    machine.map(file)
    machine.map(file, at=20, flags=PRIVATE)
    assert machine.write(22, 6) == 0
    assert machine.read(23) == (0, 103)
    remove = int(Madv.REMOVE)
    assert machine.on(0, "sys_madvise", page(2), 2 * PAGE_SIZE, remove) == 0
    assert [machine.read(at)[1] for at in range(1, 5)] == [101, 0, 0, 104]
    assert [machine.read(at)[1] for at in range(21, 25)] == [101, 6, 0, 104]
    assert machine.on(0, "sys_madvise", page(20), PAGE_SIZE, remove) == -Errno.EACCES
    assert machine.on(0, "sys_madvise", page(7), 2 * PAGE_SIZE, remove) == -Errno.ENOMEM
    assert machine.on(0, "sys_mlock", page(0), PAGE_SIZE) == 0
    assert machine.on(0, "sys_madvise", page(0), PAGE_SIZE, remove) == -Errno.EINVAL


def test_willneed_reads_a_file_in(machine):
    file = machine.create()
    machine.map(file)
    assert (
        machine.on(0, "sys_madvise", page(2), 20 * PAGE_SIZE, int(Madv.WILLNEED)) == -Errno.ENOMEM
    )
    assert cached(machine, file) == 6
    assert mapped(machine) == []


@both_kinds
@pytest.mark.parametrize("flags", [SHARED, PRIVATE], ids=["shared", "private"])
def test_populate_and_mlock_touch_all_pages(machine, kind, flags):
    file = machine.create(kind=kind)
    put(machine, file, *range(8))
    machine.map(file, flags=flags | 0x8000)
    assert mapped(machine) == list(range(8))
    anonymous = machine.frame(0)["flags"] & PAGE_KIND_MASK == PageKind.ANON
    assert anonymous == (flags == PRIVATE)
    machine.map(file, flags=flags, at=20)
    assert machine.on(0, "sys_mlock", page(20), 8 * PAGE_SIZE) == 0
    assert [machine.read(i)[1] for i in range(20, 28)] == list(range(100, 108))


def test_populate_ends_where_the_file_does(machine):
    file = machine.create(pages=2)
    machine.map(file, pages=4, flags=SHARED | 0x8000)
    assert mapped(machine) == [0, 1]
    assert machine.on(0, "sys_mlock", page(0), 4 * PAGE_SIZE) == -Errno.ENOMEM
    assert machine.on(0, "sys_madvise", page(0), 4 * PAGE_SIZE, int(Madv.POPULATE_WRITE)) == (
        -Errno.EFAULT
    )


@both_kinds
def test_mincore_tells_what_is_in_the_cache(machine, kind):
    file = machine.create(kind=kind)
    put(machine, file, 1, 5)
    machine.map(file)
    vec = machine.segment.scratch(0)
    assert machine.on(0, "sys_mincore", page(0), 8 * PAGE_SIZE, vec) == 0
    words = [machine.segment.word(vec + i * WORD) for i in range(8)]
    assert words == [0, 1, 0, 0, 0, 1, 0, 0]


def test_msync_cleans_pages_so_that_the_next_write_is_noticed(machine):
    file = machine.create()
    machine.map(file)
    machine.map(file, at=20)
    assert machine.write(1, 5) == 0
    assert machine.write(21, 6) == 0
    length = 8 * PAGE_SIZE
    assert machine.on(0, "sys_msync", page(0), length, int(Msync.ASYNC)) == 0
    assert machine.frame(1)["flags"] & Pg.DIRTY
    assert machine.on(0, "sys_msync", page(0), length, int(Msync.SYNC)) == 0
    assert not machine.frame(1)["flags"] & Pg.DIRTY
    assert not (machine.entry(1) | machine.entry(21)) & (Pte.RW | Pte.DIRTY)
    assert machine.total(Event.PAGES_WRITTEN) == 1
    faults = machine.total(Event.FILE_MKWRITE)
    assert machine.write(1, 7) == 0
    assert machine.total(Event.FILE_MKWRITE) == faults + 1
    assert machine.read(21) == (0, 7)
    assert machine.frame(1)["flags"] & Pg.DIRTY


def test_shared_memory_is_not_written_back(machine):
    file = machine.create(kind="shmem")
    machine.map(file)
    assert machine.write(1, 5) == 0
    assert machine.on(0, "sys_msync", page(0), 8 * PAGE_SIZE, int(Msync.SYNC)) == 0
    assert machine.entry(1) & Pte.RW
    assert machine.total(Event.PAGES_WRITTEN) == 0


SYNC, ASYNC, INVALIDATE = (int(m) for m in (Msync.SYNC, Msync.ASYNC, Msync.INVALIDATE))
MSYNC = {
    "unknown flag": (page(0), PAGE_SIZE, 8, -Errno.EINVAL),
    "both": (page(0), PAGE_SIZE, SYNC | ASYNC, -Errno.EINVAL),
    "not a page": (page(0) + 1, PAGE_SIZE, SYNC, -Errno.EINVAL),
    "nothing": (page(0), 0, SYNC, 0),
    "no flag": (page(0), PAGE_SIZE, 0, 0),
    "a hole": (page(0), 10 * PAGE_SIZE, SYNC, -Errno.ENOMEM),
    "a hole first": (page(-2), 3 * PAGE_SIZE, SYNC, -Errno.ENOMEM),
    "too long": (page(0), 1 << 62, ASYNC, -Errno.ENOMEM),
    "round the address space": (page(0), -PAGE_SIZE, SYNC, -Errno.ENOMEM),
    "less than a page short of that": (page(0), -1, SYNC, 0),
    "locked": (page(4), PAGE_SIZE, INVALIDATE, -Errno.EBUSY),
    "not locked": (page(0), PAGE_SIZE, INVALIDATE, 0),
}


@pytest.mark.parametrize("case", MSYNC)
def test_msync_checks_its_arguments(machine, case):
    start, length, flags, expected = MSYNC[case]
    file = machine.create()
    machine.map(file)
    assert machine.on(0, "sys_mlock", page(4), PAGE_SIZE) == 0
    assert machine.on(0, "sys_msync", start, length, flags) == expected


def test_mprotect_of_a_dirty_page_gives_the_right_to_write_at_once(machine):
    file = machine.create()
    machine.map(file)
    assert machine.write(1, 5) == 0
    assert machine.read(2) == (0, 0)
    for prot in (READ, RW):
        assert machine.on(0, "sys_mprotect", page(0), 8 * PAGE_SIZE, prot) == 0
    assert machine.entry(1) & Pte.RW
    assert not machine.entry(2) & Pte.RW


def test_mremap_moves_the_entries_of_a_file(machine):
    file = machine.create()
    put(machine, file, *range(8))
    machine.map(file)
    assert machine.read(0) == (0, 100)
    far = page(0) + PMD_SIZE + 3 * PAGE_SIZE
    assert machine.on(0, "sys_mremap", page(0), 8 * PAGE_SIZE, 8 * PAGE_SIZE, 3, far) == far
    assert machine.on(0, "user_read", far + 7 * PAGE_SIZE) == (0, 107)
    assert machine.on(0, "sys_ftruncate", file, PAGE_SIZE) == 0
    assert machine.on(0, "user_read", far + 7 * PAGE_SIZE) == (SIGBUS, 0)
    assert machine.on(0, "user_read", far) == (0, 100)


def test_unmapping_a_file_leaves_it_in_the_cache(machine):
    file = machine.create(pages=200)
    put(machine, file, *range(200))
    machine.map(file, pages=200)
    for at in range(0, 200, 8):
        assert machine.read(at) == (0, at + 100)
    machine.unmap(pages=200)
    assert cached(machine, file) == 200
    assert machine.segment.mms["rss_file"][0] + machine.segment.cpus["rss_file"].sum() == 0


def test_out_of_memory_for_a_page_is_told(machine):
    file = machine.create(pages=3000, kind="shmem")
    machine.map(file, pages=3000)
    results = {machine.write(at, 1) for at in range(2000)}
    assert results == {0, -Errno.ENOMEM}
