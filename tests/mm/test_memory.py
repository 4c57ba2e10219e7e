# SPDX-License-Identifier: MIT
"""What a fault maps, what unmapping takes away, and which counter says so.

One CPU at a time; races are in test_data.py and in the scripted interleavings of the protocols.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from whole_kernel import KernelMachine, kernel_engine

from spfemu.events import Event
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE, WORD
from spfemu.mm.flags import (
    PGDIR_SIZE,
    PMD_SIZE,
    PTE_ADDR_MASK,
    PUD_SIZE,
    Errno,
    Madv,
    Map,
    Prot,
    Pte,
)

FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
NONE, READ, WRITE, EXEC = (int(p) for p in (Prot.NONE, Prot.READ, Prot.WRITE, Prot.EXEC))
RW = READ | WRITE
BASE = 0x1000_0000
PAGES = 8
LINUX_5_12 = 0x50C
"""Later ones make pages writable in mprotect already."""
REFUSED = -Errno.EFAULT
COUNTED = (
    *(Event.ANON_ZERO_PAGE, Event.ANON_PAGE, Event.ANON_LOST, Event.WP_REUSE, Event.WP_COPY),
    *(Event.PTE_CHANGED, Event.FAULT_SIGSEGV_MAPERR, Event.FAULT_SIGSEGV_ACCERR, Event.FAULT_OOM),
)
"""How a fault can end."""


class Memory(KernelMachine):
    """A machine of two CPUs with shorter words for what these tests do."""

    def map(self, address: int = BASE, pages: int = PAGES, prot: int = RW) -> None:
        assert self.on(0, "sys_mmap", address, pages * PAGE_SIZE, prot, FIXED) == address

    def unmap(self, address: int = BASE, pages: int = PAGES) -> None:
        assert self.on(0, "sys_munmap", address, pages * PAGE_SIZE) == 0

    def protect(self, prot: int, address: int = BASE, pages: int = PAGES) -> None:
        assert self.on(0, "sys_mprotect", address, pages * PAGE_SIZE, prot) == 0

    def drop(self, address: int = BASE, pages: int = PAGES) -> None:
        assert self.on(0, "sys_madvise", address, pages * PAGE_SIZE, Madv.DONTNEED) == 0

    def write(self, address: int, value: int, cpu: int = 0) -> int:
        return int(self.on(cpu, "user_write", address, value))

    def read(self, address: int, cpu: int = 0) -> tuple[int, int]:
        return self.on(cpu, "user_read", address)  # type: ignore[no-any-return]

    def entry(self, address: int) -> int:
        """The pte of an address, 0 if there is none or no table."""
        slot = int(self.call("find_pmd", self.segment.mm(0), address))
        if slot == 0 or self.segment.word(slot) == 0:
            return 0
        return self.segment.word(int(self.on(0, "hardware_walk_pte", address)))

    def page(self, address: int) -> Any:
        """PAGE of the frame mapped at an address, as a record."""
        frame = (self.entry(address) & PTE_ADDR_MASK) - self.segment.address["frames"]
        return self.segment.pages[frame >> PAGE_SHIFT]

    def ends(self) -> dict[str, int]:
        """How the faults so far ended."""
        return {e.name: self.total(e) for e in COUNTED if self.total(e)}


@pytest.fixture(
    params=[
        ("native", "classic", "rcu"),
        ("native", "spf", "rcu"),
        ("native", "spf", "irq"),
        ("plain", "classic", "irq"),
        ("plain", "spf", "rcu"),
    ],
    ids=" ".join,
)
def memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    """Memory on which each test ends with a check of the whole segment."""
    made = Memory(kernel_engine(*request.param, version=LINUX_5_12), nr_cpus=2)
    yield made
    found = made.violations()
    made.close()
    assert found == []


def test_untouched_memory_has_no_tables(memory: Memory) -> None:
    memory.map()
    assert memory.mm["pgtables"] == 1
    assert memory.entry(BASE) == 0


def test_read_of_a_new_page_maps_the_zero_page(memory: Memory) -> None:
    memory.map()
    assert memory.read(BASE) == (0, 0)
    entry = memory.entry(BASE)
    assert entry & PTE_ADDR_MASK == memory.segment.system["zero_pfn"]
    assert entry & (Pte.SPECIAL | Pte.RW) == Pte.SPECIAL
    assert memory.ends() == {"ANON_ZERO_PAGE": 1}
    assert memory.segment.cpus["rss_anon"].sum() == 0


def test_write_to_a_new_page_maps_a_frame(memory: Memory) -> None:
    memory.map()
    assert memory.write(BASE + 3 * WORD, 42) == 0
    assert memory.read(BASE + 3 * WORD) == (0, 42)
    assert memory.entry(BASE) & (Pte.RW | Pte.DIRTY) == Pte.RW | Pte.DIRTY
    page = memory.page(BASE)
    assert (page["refcount"], page["mapcount"], page["index"]) == (1, 1, BASE >> PAGE_SHIFT)
    (vma,) = (v for v in memory.segment.vmas if v["vm_start"] == BASE and v["vm_mm"])
    assert page["mapping"] == vma["anon_vma"] | 1 != 1
    assert memory.ends() == {"ANON_PAGE": 1}


def test_new_page_is_zero_though_the_frame_was_used(memory: Memory) -> None:
    memory.map()
    for word in range(0, PAGE_SIZE, 64 * WORD):
        memory.write(BASE + word, -1)
    memory.drop()
    assert memory.write(BASE, 1) == 0
    assert [memory.read(BASE + word)[1] for word in range(0, PAGE_SIZE, 64 * WORD)] == [1] + [0] * 7


def test_write_on_the_zero_page_copies_it(memory: Memory) -> None:
    memory.map()
    memory.read(BASE, cpu=1)
    assert memory.write(BASE, 5) == 0
    assert memory.read(BASE, cpu=1) == (0, 5)
    assert memory.ends() == {"ANON_ZERO_PAGE": 1, "WP_COPY": 1}
    assert memory.segment.cpus["rss_anon"].sum() == 1


def test_write_on_a_read_only_private_page_reuses_it(memory: Memory) -> None:
    memory.map()
    memory.write(BASE, 6)
    memory.protect(READ)
    assert memory.entry(BASE) & Pte.RW == 0
    memory.protect(RW)
    assert memory.entry(BASE) & Pte.RW == 0, "the write fault decides that"
    frame = memory.entry(BASE) & PTE_ADDR_MASK
    assert memory.write(BASE + WORD, 7) == 0
    assert memory.entry(BASE) & PTE_ADDR_MASK == frame
    assert [memory.read(BASE + offset)[1] for offset in (0, WORD)] == [6, 7]
    assert memory.ends() == {"ANON_PAGE": 1, "WP_REUSE": 1}


def test_write_on_a_page_with_another_reference_copies_it(memory: Memory) -> None:
    """Somebody else holds the frame: it must not change."""
    memory.map()
    memory.write(BASE, 6)
    memory.protect(READ)
    memory.protect(RW)
    old = memory.entry(BASE) & PTE_ADDR_MASK
    held = memory.on(0, "virt_to_page", old)
    memory.call("get_page", held)
    assert memory.write(BASE + WORD, 7) == 0
    assert memory.entry(BASE) & PTE_ADDR_MASK != old
    assert [memory.segment.word(old + offset) for offset in (0, WORD)] == [6, 0]
    assert [memory.read(BASE + offset)[1] for offset in (0, WORD)] == [6, 7]
    assert memory.ends() == {"ANON_PAGE": 1, "WP_COPY": 1}
    memory.on(0, "put_page", held)


@pytest.mark.parametrize(
    ("prot", "read", "write"),
    [
        (NONE, REFUSED, REFUSED),
        (READ, 0, REFUSED),
        (WRITE, 0, 0),
        (EXEC, 0, REFUSED),
        (RW, 0, 0),
        (READ | EXEC, 0, REFUSED),
        (RW | EXEC, 0, 0),
    ],
)
def test_rights(memory: Memory, prot: int, read: int, write: int) -> None:
    """As on x86: what may be written or executed may be read."""
    memory.map(prot=prot)
    assert memory.read(BASE) == (read, 0)
    assert memory.write(BASE, 1) == write
    assert memory.total(Event.FAULT_SIGSEGV_ACCERR) == (read < 0) + (write < 0)


def test_rights_taken_away_and_given_back(memory: Memory) -> None:
    """On both CPUs, with the data kept."""
    memory.map()
    memory.write(BASE, 9)
    memory.read(BASE, cpu=1)
    memory.protect(NONE)
    assert memory.entry(BASE) & (Pte.PRESENT | Pte.PROTNONE) == Pte.PROTNONE
    for cpu in range(2):
        assert memory.read(BASE, cpu) == (-Errno.EFAULT, 0)
        assert memory.write(BASE, 0, cpu) == -Errno.EFAULT
    memory.protect(READ)
    assert [memory.read(BASE, cpu) for cpu in range(2)] == [(0, 9)] * 2
    assert memory.write(BASE, 0, 1) == -Errno.EFAULT


def test_unmapped_memory(memory: Memory) -> None:
    memory.map()
    for address in (BASE - WORD, BASE + PAGES * PAGE_SIZE, 0, 1 << 46):
        assert memory.read(address) == (-Errno.EFAULT, 0)
        assert memory.write(address, 1) == -Errno.EFAULT
    assert memory.ends() == {"FAULT_SIGSEGV_MAPERR": 8}


def test_after_munmap_no_cpu_reads_the_frame(memory: Memory) -> None:
    memory.map()
    memory.write(BASE, 3)
    memory.read(BASE, cpu=1)
    memory.unmap()
    assert [memory.read(BASE, cpu) for cpu in range(2)] == [(-Errno.EFAULT, 0)] * 2
    memory.map()
    assert [memory.read(BASE, cpu) for cpu in range(2)] == [(0, 0)] * 2


def test_dontneed_keeps_the_mapping_and_its_tables(memory: Memory) -> None:
    memory.map()
    memory.write(BASE, 3)
    tables = int(memory.mm["pgtables"])
    memory.drop(pages=1)
    assert memory.entry(BASE) == 0
    assert memory.mm["pgtables"] == tables
    assert memory.read(BASE) == (0, 0)


def test_partial_unmap_leaves_the_rest(memory: Memory) -> None:
    memory.map()
    for page in range(PAGES):
        memory.write(BASE + page * PAGE_SIZE, page + 1)
    memory.unmap(BASE + 2 * PAGE_SIZE, 3)
    found = [memory.read(BASE + page * PAGE_SIZE) for page in range(PAGES)]
    gone = (-Errno.EFAULT, 0)
    assert found == [(0, 1), (0, 2), gone, gone, gone, (0, 6), (0, 7), (0, 8)]
    assert memory.total(Event.PAGES_ZAPPED) == 3
    assert memory.total(Event.TABLES_FREED) == 0


@pytest.mark.parametrize(
    ("distance", "shared"),
    [(PAGES * PAGE_SIZE, 4), (PMD_SIZE, 3), (PUD_SIZE, 2), (PGDIR_SIZE, 1)],
)
def test_tables_go_with_the_last_mapping_in_their_range(
    memory: Memory, distance: int, shared: int
) -> None:
    """Of the four tables of the second mapping, `shared` map the first one too."""
    first, second = PGDIR_SIZE, PGDIR_SIZE + distance
    for address in (first, second):
        memory.map(address)
        memory.write(address, 1)
    assert memory.mm["pgtables"] == 8 - shared
    memory.unmap(second)
    assert memory.mm["pgtables"] == 4
    assert memory.read(first) == (0, 1)
    memory.unmap(first)
    assert memory.mm["pgtables"] == 1
    assert memory.total(Event.TABLES_FREED) == 7 - shared


def test_unmap_across_tables_and_holes(memory: Memory) -> None:
    """One call over three mappings that lie far apart."""
    addresses = [PGDIR_SIZE - PAGE_SIZE * PAGES, PGDIR_SIZE + 3 * PUD_SIZE, 2 * PGDIR_SIZE]
    for address in addresses:
        memory.map(address)
        memory.write(address, 1)
    memory.unmap(addresses[0], (addresses[-1] - addresses[0]) // PAGE_SIZE + PAGES)
    assert memory.mm["pgtables"] == 1
    assert memory.mm["rss_anon"] + memory.segment.cpus["rss_anon"].sum() == 0


def test_resident_set_is_synced_now_and_then(memory: Memory) -> None:
    memory.map(pages=100)
    for page in range(100):
        memory.write(BASE + page * PAGE_SIZE, 1, cpu=page & 1)
    synced = int(memory.mm["rss_anon"])
    assert synced + memory.segment.cpus["rss_anon"].sum() == 100
    memory.unmap(pages=100)
    assert memory.mm["rss_anon"] + memory.segment.cpus["rss_anon"].sum() == 0


def test_out_of_memory_and_recovery() -> None:
    """A fault that gets no frame fails; what is freed can be used again."""
    memory = Memory(kernel_engine("native", "spf"), nr_cpus=1, nr_frames=80)
    memory.map(pages=200)
    written = 0
    while memory.write(BASE + written * PAGE_SIZE, written) == 0:
        written += 1
    assert memory.write(BASE + written * PAGE_SIZE, 1) == -Errno.ENOMEM
    assert memory.total(Event.FAULT_OOM) == 2
    assert written == 80 - 2 - 3  # but the zero page and the four tables
    assert [memory.read(BASE + page * PAGE_SIZE) for page in range(written)] == [
        (0, page) for page in range(written)
    ]
    memory.drop(pages=10)
    assert memory.write(BASE + written * PAGE_SIZE, 1) == 0
    assert memory.violations() == []
    memory.close()


def test_tables_that_wait_for_a_grace_period_are_reclaimed() -> None:
    """Rather than fail, a fault waits for the tables that its CPU has freed."""
    memory = Memory(kernel_engine("native", "classic", "rcu"), nr_cpus=1, nr_frames=24, users=2)
    for number in range(1, 40):
        memory.map(number * PGDIR_SIZE, 1)
        assert memory.write(number * PGDIR_SIZE, number) == 0
        memory.unmap(number * PGDIR_SIZE, 1)
    assert memory.total(Event.FAULT_OOM) == 0
    assert memory.violations() == []
    memory.close()


def test_bare_protocol_maps_without_rmap() -> None:
    """The floor keeps no mapping and index; all else is checked the same."""
    memory = Memory(kernel_engine("native", "bare"), nr_cpus=2)
    memory.map()
    assert memory.write(BASE, 1) == 0
    assert memory.read(BASE + PAGE_SIZE, cpu=1) == (0, 0)
    assert memory.page(BASE)["mapping"] == 0
    assert memory.read(BASE, cpu=1) == (0, 1)
    assert memory.violations() == []
    memory.unmap()
    assert memory.read(BASE) == (0, 0), "it looks up no VMA"
    memory.close()


# Histogram of faults per protocol: what an attempt counts


def test_speculation_is_counted() -> None:
    """The first fault of a VMA cannot be speculative, the next one is."""
    memory = Memory(kernel_engine("native", "spf"), nr_cpus=2)
    memory.map()
    memory.write(BASE, 1)
    memory.write(BASE + PAGE_SIZE, 1)
    counts = memory.segment.cpus["event"][0]
    assert counts[Event.SPF_ATTEMPT] == 2
    assert counts[Event.SPF_ABORT] == 1
    assert counts[Event.SPF_ABORT_PUD] == 1
    assert counts[Event.FAULT_CLASSIC] == 1
    memory.close()


def test_single_thread_does_not_speculate() -> None:
    memory = Memory(kernel_engine("native", "spf"), nr_cpus=1)
    memory.map()
    memory.write(BASE, 1)
    assert memory.total(Event.SPF_ATTEMPT) == 0
    memory.close()
