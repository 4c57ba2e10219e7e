# SPDX-License-Identifier: MIT
"""Every check of files reports what it is there for, and nothing else does."""

from collections.abc import Iterator
from typing import Any

import pytest
from corruption import Corruptions
from corruption import check_reported as check_good_reported
from good_segment import READ_WRITE, kernel

from spfemu.checks import check_segment
from spfemu.engines.plain import PlainEngine
from spfemu.layout import ADDRESS_SPACE, FILE, GATHER, PAGE_SIZE, RWSEM, VMA, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, FileOps, Fmode, Madv, Map, PageKind, Pg, Pte, Vm
from spfemu.segment import Geometry, Segment

AREA = 1 << 40
PAGES = 4
SHARED = int(Map.SHARED | Map.FIXED)
PRIVATE = int(Map.PRIVATE | Map.FIXED)


class Files:
    """One CPU; a file of four pages, mapped shared and, behind that, private, and shared memory.

    Pages 0 and 1 of the file are in its cache: page 0 is written through the shared mapping and
    copied in the private one, page 1 is read in both.  Page 0 of shared memory is written.
    """

    def __init__(self, engine: PlainEngine, segment: Segment) -> None:
        self.engine, self.segment = engine, segment
        segment.mms["mm_users"][0] = 2
        segment.mms["cpumask"][0, 0] = 1
        self.opened = self.on("sys_create", PAGES * PAGE_SIZE, int(FileOps.GENERIC))
        self.map(0, SHARED, self.opened)
        self.map(1, PRIVATE, self.opened)
        self.map(2, SHARED | Map.ANONYMOUS, 0)
        assert self.on("sys_madvise", AREA, 8 * PAGE_SIZE, int(Madv.RANDOM)) == 0
        for index in (0, 1, 2):
            assert self.on("user_write", self.address(index, 0), 7 + index) == 0
        for index in (0, 1):
            assert self.on("user_read", self.address(index, 1))[0] == 0
        self.copy = segment.words.copy()

    def on(self, name: str, *arguments: int) -> Any:
        cpu = self.segment.cpu(0)
        self.engine.call("cpu_idle_exit", cpu)
        result = self.engine.call(name, cpu, *arguments)
        self.engine.call("cpu_idle_enter", cpu)
        return result

    def map(self, index: int, flags: int, file: int) -> None:
        address, length = AREA + index * PAGES * PAGE_SIZE, PAGES * PAGE_SIZE
        call = (address, length, READ_WRITE, int(flags), file, 0)
        assert self.on("sys_mmap_file", *call) == address

    def address(self, index: int, page: int) -> int:
        """Address of a page of a mapping."""
        return AREA + (index * PAGES + page) * PAGE_SIZE

    def entry(self, index: int, page: int) -> int:
        """Index in `segment.words` of the pte of a page of a mapping."""
        pmd = self.segment.word(int(self.engine.call("find_pmd", self.segment.mm(0), AREA)))
        slot = (pmd & PTE_ADDR_MASK) + ((self.address(index, page) >> 12) & 511) * WORD
        return (slot - self.segment.base) // WORD

    def page(self, index: int, page: int) -> Any:
        """PAGE of the frame that a page of a mapping is in, as a record."""
        frame = int(self.segment.words[self.entry(index, page)]) & PTE_ADDR_MASK
        return self.segment.pages[(frame - self.segment.address["frames"]) // PAGE_SIZE]

    def slot(self, page: int) -> int:
        """Index in `segment.words` of the page's slot in the cache of the file."""
        return (int(self.mapping["i_pages"]) - self.segment.base) // WORD + page

    def restore(self) -> None:
        self.segment.words[:] = self.copy

    def vma(self, index: int) -> Any:
        """The VMA of a mapping, as a record."""
        vmas = self.segment.vmas
        found = (vmas["vm_start"] == AREA + index * PAGES * PAGE_SIZE) & (vmas["slab_state"] == 1)
        return vmas[found.nonzero()[0][0]]

    def vma_address(self, index: int) -> int:
        vma = self.vma(index)
        return int(vma.__array_interface__["data"][0])

    @property
    def file(self) -> Any:
        """The file that is open, as a record."""
        return self.segment.files[(self.opened - self.segment.address["files"]) // FILE.SIZE]

    @property
    def mapping(self) -> Any:
        """What it is open on, as a record."""
        offset = int(self.file["f_mapping"]) - self.segment.address["mappings"]
        return self.segment.mappings[offset // ADDRESS_SPACE.SIZE]


@pytest.fixture(scope="module")
def built() -> Iterator[Files]:
    made = Files(PlainEngine(kernel({})), Segment.create(Geometry(nr_files=4)))
    yield made
    made.segment.close()


@pytest.fixture
def files(built: Files) -> Iterator[Files]:
    yield built
    built.restore()


corruptions = Corruptions()


@corruptions.reports("^open file 0 .* has f_count 4, but 3 are its descriptors and VMAs$")
def reference_too_many(files: Files) -> None:
    files.file["f_count"] += 1


@corruptions.reports("^open file 0 .* has f_count 3, but 2 are its descriptors and VMAs$")
def descriptor_lost(files: Files) -> None:
    files.file["descriptors"] -= 1


@corruptions.reports("^open file 0 .* has f_mapping 0x.* and f_mode 0x7$")
def unknown_mode(files: Files) -> None:
    files.file["f_mode"] |= 4


@corruptions.reports(
    "^open file 0 .* has f_mapping 0x9 and f_mode 0x3$",
    "^file 0 .* has i_count 1, but 0 are open$",
    *2 * ["^i_mmap of file 0 .* lists VMA .*, which does not map the file$"],
    *3 * ["^mm 0: frame .*, mapped at .*, has mapping 0x.* instead of 0x9$"],
)
def mapping_astray(files: Files) -> None:
    files.file["f_mapping"] = 9


@corruptions.reports("^open file 3 .* is lost: neither free nor in use$")
def open_file_lost(files: Files) -> None:
    files.segment.files["next_free"][2] = 0


@corruptions.reports("^file 2 .* is lost: neither free nor in use$")
def file_lost(files: Files) -> None:
    files.segment.system["mapping_free"] = files.segment.mappings["next_free"][2]


@corruptions.reports(
    "^file 2 .* is free and in use$",
    "^file 2 .* has i_count 1, but 0 are open$",
)
def free_file_in_use(files: Files) -> None:
    files.segment.mappings["i_count"][2] = 1


@corruptions.reports("^file 0 .* has i_count 2, but 1 are open$")
def inode_reference_too_many(files: Files) -> None:
    files.mapping["i_count"] += 1


@corruptions.reports(
    "^file 0 .* has i_fop 1 and i_size -1$", *2 * ["^file 0 .*: page . lies beyond its end$"]
)
def negative_size(files: Files) -> None:
    files.mapping["i_size"] = -1


@corruptions.reports("^mm 0: VMA .* has vm_ops 1, not those of file 1 at 0x", "has vm_page_prot")
def ops_of_another_kind(files: Files) -> None:
    files.vma(2)["vm_ops"] = FileOps.GENERIC


@corruptions.reports("^mm 0: VMA .* is VM_SHARED without VM_MAYSHARE$")
def shared_without_mayshare(files: Files) -> None:
    files.vma(0)["vm_flags"] &= ~int(Vm.MAYSHARE)


@corruptions.reports("^mm 0: VMA .* maps open file 0 .*, whose f_mode 0x1 forbids it$")
def shared_of_a_read_only_file(files: Files) -> None:
    files.file["f_mode"] = Fmode.READ


@corruptions.reports(
    "^i_mmap of file 0 .* lacks VMA .*, which maps the file$",
    "^i_mmap of file 0 .*: VMA .* has shared_prev 0x.* instead of 0x0$",
)
def not_on_the_list(files: Files) -> None:
    first = files.segment.word(int(files.file["f_mapping"]) + ADDRESS_SPACE.i_mmap)
    files.mapping["i_mmap"] = files.segment.word(first + VMA.shared_next)


@corruptions.reports("^i_mmap of file 0 .*: VMA .* has shared_prev 0x8 instead of 0x")
def back_link_wrong(files: Files) -> None:
    files.vma(0)["shared_prev"] = 8


@corruptions.reports(
    "^i_mmap of file 0 .* lists VMA .*, which does not map the file$",
    "^i_mmap of file 1 .*: VMA .* has shared_prev 0x.* instead of 0x0$",
)
def foreign_vma_on_the_list(files: Files) -> None:
    files.vma(0)["shared_next"] = files.vma_address(2)
    files.vma(2)["shared_prev"] = files.vma_address(0)


@corruptions.reports("^i_mmap_rwsem of file 0 is not free: its count is 0x1$")
def list_locked(files: Files) -> None:
    files.mapping["i_mmap_rwsem"][RWSEM.count // WORD] = 1


@corruptions.reports("^files_lock is held by CPU 0$")
def slab_locked(files: Files) -> None:
    files.segment.system["files_lock"] = 1


# The page cache


@corruptions.reports("^file 0 .* counts 3 pages, but has 2$")
def pages_counted_wrong(files: Files) -> None:
    files.mapping["nrpages"] += 1


@corruptions.reports("^file 0 .*: page 2 is at 0x5, no page$", "counts 2 pages, but has 3$")
def page_astray(files: Files) -> None:
    files.segment.words[files.slot(2)] = 5


@corruptions.reports(
    "^file 0 .*: page 2, frame .*, has index 0x1 instead of 0x2$",
    "^frame .* has refcount 3 instead of 4 .owner: the page cache.$",
    "counts 2 pages, but has 3$",
)
def page_twice_in_the_cache(files: Files) -> None:
    files.segment.words[files.slot(2)] = files.segment.words[files.slot(1)]


@corruptions.reports(
    "^frame .* has kind 4 instead of 1 .owner: page tables that map it.$",
    "^frame .* has refcount 2 instead of 1 .owner: page tables that map it.$",
    "counts 2 pages, but has 1$",
)
def page_mapped_but_not_in_the_cache(files: Files) -> None:
    files.segment.words[files.slot(0)] = 0
    files.page(0, 0)["flags"] = int(PageKind.FILE | Pg.DIRTY | Pg.UPTODATE)


@corruptions.reports(
    "^file 0 .*: page 1, frame .*, has mapping 0x0 instead of 0x",
)
def page_without_mapping(files: Files) -> None:
    files.page(0, 1)["mapping"] = 0


@corruptions.reports("^file 0 .*: page 0, frame .*, has flags 0x74 instead of 0x64$")
def page_locked(files: Files) -> None:
    files.page(0, 0)["flags"] |= int(Pg.LOCKED)


@corruptions.reports("^file 0 .*: page 1, frame .*, has flags 0x4 instead of 0x24$")
def page_not_read(files: Files) -> None:
    files.page(0, 1)["flags"] &= ~int(Pg.UPTODATE)


@corruptions.reports("^file 0 .*: page 1 lies beyond its end$")
def page_beyond_the_end(files: Files) -> None:
    files.mapping["i_size"] = PAGE_SIZE


@corruptions.reports("^mm 0: the pte of 0x.* is writable, but the page is not dirty$")
def write_unnoticed(files: Files) -> None:
    files.page(0, 0)["flags"] &= ~int(Pg.DIRTY)


@corruptions.reports("^mm 0: the pte of 0x.* lets a private mapping write to a file$")
def private_write_to_the_file(files: Files) -> None:
    files.segment.words[files.entry(1, 1)] |= int(Pte.RW)


@corruptions.reports(
    "^mm 0: the pte of 0x.* maps a private page in a shared mapping$",
    *2 * ["^mm 0: frame .*, mapped at .*, has mapping 0x.* instead of 0x.*1$"],
    "^file 0 .*: page 1, frame .*, has flags 0x21 instead of 0x24$",
    "^frame .* has kind 1 instead of 4 .owner: the page cache.$",
    *["^mm 0 counts 0 anonymous pages", "^mm 0 counts 0 pages of files"],
)
def private_page_in_a_shared_mapping(files: Files) -> None:
    files.page(0, 1)["flags"] = int(PageKind.ANON | Pg.UPTODATE)


@corruptions.reports(
    "^the page cache of file 0 .* has a root with 7 bits below it$",
    "^file 0 .* counts 2 pages, but has 0$",
    *2 * ["^frame .* has kind 4 instead of 1"],
    *["^frame .* has refcount 2 instead of 1", "^frame .* has refcount 3 instead of 2"],
)
def root_of_no_level(files: Files) -> None:
    root = (int(files.mapping["i_pages"]) - files.segment.address["frames"]) // PAGE_SIZE
    files.segment.pages["private"][root] = 7


@corruptions.reports("^mm 0 counts .* pages of files .* but 3 are mapped")
def pages_of_files_counted_wrong(files: Files) -> None:
    files.segment.mms["rss_file"][0] += 1


@corruptions.reports("^mm 0 counts .* pages of shared memory .* but 1 are mapped")
def pages_of_shared_memory_counted_wrong(files: Files) -> None:
    files.segment.mms["rss_shmem"][0] += 1


@corruptions.reports("^xa_lock of file 0 is held by CPU 0$", "^i_rwsem of file 0 is not free")
def cache_locked(files: Files) -> None:
    files.mapping["xa_lock"] = 1
    files.mapping["i_rwsem"][RWSEM.count // WORD] = 1


@corruptions.reports("^CPU 0 never finished an mmu_gather: {'file_only': 1}$")
def gather_of_files_only(files: Files) -> None:
    files.segment.cpus["gather"][0][GATHER.file_only // WORD] = 1


def test_the_segment_is_good(files: Files) -> None:
    assert check_segment(files.segment) == []


@corruptions.parametrize
def test_reported(files: Files, corrupt: Any, patterns: tuple[str, ...]) -> None:
    check_good_reported(files, corrupt, patterns)  # type: ignore[arg-type]
