# SPDX-License-Identifier: MIT
"""Swap and reclaim: data comes back as it went, and nothing is lost, leaked or counted twice."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mm_machine import Machine, seeds
from protocol_sets import GUARDED, STORMED
from whole_kernel import KernelMachine, kernel_engine

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.events import Event
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.flags import PTE_ADDR_MASK, Errno, Madv, Map, Pg, Prot, Pte
from spfemu.mm.swapops import SWAP_ENTRY, SWAP_ENTRY_BITS
from spfemu.segment import Geometry, Segment

AREA = 1 << 40
RW = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
FRAMES = 150
"""With tables, some 130 pages fit."""


class SwapMachine(KernelMachine):
    """A machine with a swap area and few frames."""

    def __init__(self, engine: NativeEngine | PlainEngine, users: int = 0, **given: int) -> None:
        geometry = {"nr_frames": 600, "nr_spare_mms": 8, "nr_swap": 2000} | given
        Machine.__init__(self, engine, Segment.create(Geometry(**geometry)))
        self.reset(users=users)

    def map(self, pages: int, address: int = AREA) -> None:
        assert self.on(0, "sys_mmap", address, pages * PAGE_SIZE, RW, FIXED) == address

    def write(self, page: int, value: int, cpu: int = 0) -> None:
        assert self.on(cpu, "user_write", AREA + page * PAGE_SIZE, value) == 0

    def read(self, page: int, cpu: int = 0) -> int:
        error, value = self.on(cpu, "user_read", AREA + page * PAGE_SIZE)
        assert error == 0
        return int(value)

    def fill(self, pages: int) -> None:
        """Map the area and write to each of its pages."""
        self.map(pages)
        for page in range(pages):
            self.write(page, 100 + page)

    def advise(self, advice: int, first: int, pages: int) -> None:
        start = AREA + first * PAGE_SIZE
        assert self.on(0, "sys_madvise", start, pages * PAGE_SIZE, advice) == 0

    def page_out(self, first: int, pages: int) -> None:
        self.advise(Madv.PAGEOUT, first, pages)
        assert all(self.swapped(page) for page in range(first, first + pages))

    def pte(self, page: int, mm: int = 0) -> int:
        table = int(self.segment.mms["pgd"][mm])
        address = AREA + page * PAGE_SIZE
        for shift in (39, 30, 21, 12):
            entry = self.segment.word(table + ((address >> shift) & 511) * 8)
            table = entry & PTE_ADDR_MASK
        return entry

    def swapped(self, page: int, mm: int = 0) -> bool:
        return self.pte(page, mm) & SWAP_ENTRY_BITS == SWAP_ENTRY

    def slot(self, page: int, mm: int = 0) -> Any:
        """The slot whose entry a pte holds, as a record."""
        assert self.swapped(page, mm)
        return self.segment.swap_slots[(self.pte(page, mm) & PTE_ADDR_MASK) >> PAGE_SHIFT]

    def page(self, page: int, mm: int = 0) -> Any:
        """PAGE of the frame that a pte maps, as a record."""
        entry = self.pte(page, mm)
        assert entry & Pte.PRESENT
        return self.segment.pages[
            ((entry & PTE_ADDR_MASK) - self.segment.address["frames"]) // PAGE_SIZE
        ]

    def free_slots(self) -> int:
        return int(self.segment.swap_clusters["nr_free"].sum())


@pytest.fixture
def make() -> Iterator[Callable[..., SwapMachine]]:
    """Return a function that makes machines: engine, protocol, mutant, geometry."""
    made: list[SwapMachine] = []

    def make_machine(
        name: str = "native", protocol: str = "classic", mutant: str = "", **given: int
    ) -> SwapMachine:
        made.append(SwapMachine(kernel_engine(name, protocol, "rcu", mutant), **given))
        return made[-1]

    yield make_machine
    for machine in made:
        machine.close()


@pytest.fixture
def machine(make: Callable[..., SwapMachine]) -> SwapMachine:
    return make()


# Out and in


@pytest.mark.parametrize("name", ["native", "plain"])
def test_what_is_paged_out_comes_back(make: Callable[..., SwapMachine], name: str) -> None:
    machine = make(name)
    machine.fill(6)
    machine.page_out(0, 4)
    assert machine.violations() == []
    assert machine.segment.mms["swap_ents"][0] == 4
    assert machine.free_slots() == 2000 - 4
    assert [machine.read(page) for page in range(6)] == [100, 101, 102, 103, 104, 105]
    machine.write(1, 7)
    assert machine.violations() == []
    assert [machine.read(page) for page in range(6)] == [100, 7, 102, 103, 104, 105]
    assert machine.event(0, Event.PSWPOUT) == machine.event(0, Event.PSWPIN) == 4
    assert machine.event(0, Event.PGMAJFAULT) == 4


def test_a_page_that_was_only_read_keeps_its_copy(machine: SwapMachine) -> None:
    machine.fill(1)
    machine.page_out(0, 1)
    machine.read(0)
    machine.page_out(0, 1)
    assert machine.event(0, Event.PSWPOUT) == 1
    assert machine.read(0) == 100


def test_a_write_gives_the_slot_back(machine: SwapMachine) -> None:
    machine.fill(1)
    machine.page_out(0, 1)
    machine.write(0, 5)
    assert machine.free_slots() == 2000
    assert machine.pte(0) & Pte.RW
    machine.page_out(0, 1)
    assert machine.event(0, Event.PSWPOUT) == 2
    assert machine.read(0) == 5


def test_a_write_after_a_read_reuses_the_frame(machine: SwapMachine) -> None:
    machine.fill(1)
    machine.page_out(0, 1)
    machine.read(0)
    frame = machine.pte(0) & PTE_ADDR_MASK
    machine.write(0, 5)
    assert machine.pte(0) & PTE_ADDR_MASK == frame
    assert machine.free_slots() == 2000
    assert machine.violations() == []


@pytest.mark.parametrize("protocol", GUARDED)
def test_more_than_fits_is_kept_by_swapping(
    make: Callable[..., SwapMachine], protocol: str
) -> None:
    machine = make("native", protocol, nr_cpus=2, nr_frames=FRAMES, users=2)
    machine.fill(400)
    assert machine.violations() == []
    assert machine.event(0, Event.PSWPOUT) > 250
    order = random.Random(1).sample(range(400), 400)
    assert [machine.read(page, page % 2) for page in order] == [100 + page for page in order]
    assert machine.violations() == []
    assert machine.on(0, "sys_munmap", AREA, 400 * PAGE_SIZE) == 0
    assert machine.violations() == []
    assert machine.free_slots() == 2000


def test_a_reclaim_that_writes_nothing_is_found(make: Callable[..., SwapMachine]) -> None:
    machine = make(mutant="write nothing", nr_frames=FRAMES)
    machine.fill(400)
    wrong = sum(machine.read(page) != 100 + page for page in range(400))
    assert wrong > 250


def test_used_pages_have_a_second_chance(make: Callable[..., SwapMachine]) -> None:
    machine = make(nr_frames=FRAMES)
    machine.map(400)
    kept = 0
    for page in range(400):
        machine.write(page, 100 + page)
        # flushed, because what is in the TLB is used without a trace
        machine.on(0, "local_flush_tlb")
        kept += not machine.swapped(0)
        machine.read(0)
    assert kept > 390


# Calls on what is swapped


def test_unmapping_and_dontneed_free_the_slots(machine: SwapMachine) -> None:
    machine.fill(6)
    machine.page_out(0, 6)
    machine.advise(Madv.WILLNEED, 0, 2)
    machine.advise(Madv.DONTNEED, 0, 3)
    assert machine.free_slots() == 2000 - 3
    assert machine.violations() == []
    assert machine.read(1) == 0
    assert machine.on(0, "sys_munmap", AREA, 6 * PAGE_SIZE) == 0
    assert machine.violations() == []
    assert machine.free_slots() == 2000
    assert machine.segment.mms["swap_ents"][0] == 0


def test_moved_entries_find_their_pages(machine: SwapMachine) -> None:
    machine.fill(4)
    machine.page_out(0, 2)
    there = AREA + (1 << 30)
    moved = machine.on(0, "sys_mremap", AREA, 4 * PAGE_SIZE, 4 * PAGE_SIZE, 3, there)
    assert moved == there
    assert machine.violations() == []
    values = [machine.on(0, "user_read", there + page * PAGE_SIZE) for page in range(4)]
    assert values == [(0, 100 + page) for page in range(4)]
    assert machine.violations() == []


def test_rights_are_those_of_the_vma_when_it_comes_back(machine: SwapMachine) -> None:
    machine.fill(2)
    machine.page_out(0, 2)
    assert machine.on(0, "sys_mprotect", AREA, PAGE_SIZE, Prot.READ) == 0
    assert machine.read(0) == 100
    assert machine.on(0, "user_write", AREA, 1) == -Errno.EFAULT
    assert machine.violations() == []


def test_mincore_tells_what_is_in_memory(machine: SwapMachine) -> None:
    machine.fill(3)
    machine.page_out(0, 2)
    machine.advise(Madv.WILLNEED, 1, 1)
    vec = machine.segment.scratch(0)
    assert machine.on(0, "sys_mincore", AREA, 3 * PAGE_SIZE, vec) == 0
    assert [machine.segment.word(vec + 8 * i) for i in range(3)] == [0, 1, 1]


def test_locked_memory_stays_and_comes_back_when_locked(machine: SwapMachine) -> None:
    machine.fill(4)
    machine.page_out(0, 2)
    assert machine.on(0, "sys_mlock", AREA, 4 * PAGE_SIZE) == 0
    assert not any(machine.swapped(page) for page in range(4))
    madvise = machine.on(0, "sys_madvise", AREA, 4 * PAGE_SIZE, Madv.PAGEOUT)
    assert madvise == -Errno.EINVAL
    machine.on(0, "try_to_free_pages")
    machine.on(0, "try_to_free_pages")
    assert not any(machine.swapped(page) for page in range(4))
    assert machine.free_slots() == 2000
    assert machine.violations() == []


# Advice


def test_read_ahead_saves_the_major_fault(machine: SwapMachine) -> None:
    machine.fill(4)
    machine.page_out(0, 4)
    machine.advise(Madv.WILLNEED, 0, 4)
    assert machine.event(0, Event.SWAP_RA) == 4
    assert machine.violations() == []
    assert [machine.read(page) for page in range(4)] == [100, 101, 102, 103]
    assert machine.event(0, Event.PGMAJFAULT) == 0
    assert machine.event(0, Event.SWAP_CACHE_HIT) == 4
    assert machine.violations() == []


def test_pages_read_ahead_in_vain_are_reclaimed(machine: SwapMachine) -> None:
    machine.fill(4)
    machine.page_out(0, 4)
    machine.advise(Madv.WILLNEED, 0, 4)
    machine.on(0, "try_to_free_pages")
    assert machine.segment.swap_slots["page"].tolist() == [0] * 2000
    assert machine.event(0, Event.PSWPOUT) == 4
    assert machine.violations() == []


def test_cold_pages_go_first(machine: SwapMachine) -> None:
    machine.fill(4)
    machine.advise(Madv.COLD, 2, 2)
    machine.segment.mms["scan_address"][0] = 0
    machine.on(0, "shrink_mm", machine.segment.mm(0), 32)
    assert [machine.swapped(page) for page in range(4)] == [False, False, True, True]


def test_lazily_freed_pages_go_without_a_copy(machine: SwapMachine) -> None:
    machine.fill(4)
    machine.advise(Madv.FREE, 0, 3)
    assert [machine.read(page) for page in range(4)] == [100, 101, 102, 103]
    machine.write(1, 7)
    assert machine.violations() == []
    for _ in range(2):
        machine.on(0, "try_to_free_pages")
    assert machine.event(0, Event.PGLAZYFREED) == 2
    assert [machine.read(page) for page in range(4)] == [0, 7, 0, 103]
    assert machine.violations() == []


def test_lazy_freeing_needs_no_swap_area(make: Callable[..., SwapMachine]) -> None:
    machine = make(nr_frames=FRAMES, nr_swap=0)
    machine.fill(100)
    machine.advise(Madv.FREE, 0, 100)
    machine.map(100, AREA + (1 << 30))
    for page in range(100):
        assert machine.on(0, "user_write", AREA + (1 << 30) + page * PAGE_SIZE, 1) == 0
    assert machine.event(0, Event.PGLAZYFREED) >= 60
    assert machine.violations() == []


def test_freeing_what_is_swapped_frees_it_at_once(machine: SwapMachine) -> None:
    machine.fill(3)
    machine.page_out(0, 2)
    machine.read(1)
    machine.advise(Madv.FREE, 0, 3)
    assert machine.free_slots() == 2000
    assert machine.pte(0) == 0
    assert machine.page(1)["flags"] & Pg.LAZYFREE
    assert machine.violations() == []


# Processes


def test_a_shared_page_is_swapped_out_of_all(machine: SwapMachine) -> None:
    machine.fill(2)
    child = machine.on(0, "sys_fork")
    machine.on(0, "try_to_free_pages")
    machine.on(0, "try_to_free_pages")
    assert machine.swapped(0)
    assert machine.slot(0)["count"] == 2
    assert machine.violations() == []
    machine.write(0, 5)
    machine.on(0, "switch_mm", child)
    assert [machine.read(page) for page in range(2)] == [100, 101]
    machine.write(0, 6)
    assert machine.violations() == []
    machine.on(0, "exit_mm", machine.segment.mm(0))
    assert [machine.read(page) for page in range(2)] == [5, 101]
    assert machine.violations() == []


def test_fork_copies_entries_and_exit_drops_them(machine: SwapMachine) -> None:
    machine.fill(3)
    machine.page_out(0, 3)
    child = machine.on(0, "sys_fork")
    assert machine.segment.mms["swap_ents"][:2].tolist() == [3, 3]
    assert machine.violations() == []
    machine.on(0, "switch_mm", child)
    machine.write(1, 9)
    assert [machine.read(page) for page in range(3)] == [100, 9, 102]
    machine.on(0, "exit_mm", machine.segment.mm(0))
    assert machine.violations() == []
    assert [machine.read(page) for page in range(3)] == [100, 101, 102]


@pytest.mark.parametrize("protocol", GUARDED)
def test_random_families_see_their_own_data(
    make: Callable[..., SwapMachine], protocol: str
) -> None:
    """Up to three processes write, fork, exit, advise, are reclaimed, and know their data."""
    for seed in seeds(3):
        machine = make("native", protocol, nr_frames=220, nr_swap=3000, users=2)
        rng = random.Random(seed)
        pages = 120
        machine.map(pages)
        data: dict[int, dict[int, int]] = {machine.segment.mm(0): dict.fromkeys(range(pages), 0)}
        current = machine.segment.mm(0)
        for step in range(1500):
            kind = rng.random()
            page = rng.randrange(pages)
            if kind < 0.4:
                machine.write(page, step + 1)
                data[current][page] = step + 1
            elif kind < 0.9:
                assert machine.read(page) == data[current][page], (seed, step)
            elif kind < 0.94:
                machine.advise(Madv.PAGEOUT, page, min(8, pages - page))
            elif kind < 0.95:
                machine.advise(Madv.WILLNEED, page, min(8, pages - page))
            elif kind < 0.97 and len(data) < 3:
                child = machine.on(0, "sys_fork")
                assert child > 0
                data[child] = dict(data[current])
            elif kind < 0.99:
                current = rng.choice(list(data))
                machine.on(0, "switch_mm", current)
            elif len(data) > 1 and current != machine.segment.mm(0):
                del data[current]
                machine.on(0, "exit_mm", machine.segment.mm(0))
                current = machine.segment.mm(0)
        assert machine.total(Event.PSWPIN) > 0
        assert machine.violations() == [], seed
        machine.close()


# Real processes with too little memory


def run_workers(machine: SwapMachine, operation: str, cpus: int, pages: int, rounds: int) -> None:
    """Let CPUs do an operation, each on an area of its own, with kswapd on the CPU behind them."""
    segment = machine.segment
    machine.map(cpus * pages)
    # kswapd runs the empty mm behind that of the process
    segment.cpus["mm"][cpus] = segment.mm(1)
    segment.mms["cpumask"][:, 0] = [(1 << cpus) - 1, 1 << cpus] + [0] * (len(segment.mms) - 2)
    segment.mms["mm_users"][1] = 1
    with machine.workers() as workers:
        workers.start(cpus, "run_kswapd", machine.cpu(cpus))
        for cpu in range(cpus):
            area = AREA + cpu * pages * PAGE_SIZE
            workers.start(cpu, operation, machine.cpu(cpu), area, pages, rounds, (cpu + 1) << 32)
        workers.wait_until(lambda: all(workers.finished(cpu) for cpu in range(cpus)))
        segment.system["stop"] = 1
        assert workers.join() == dict.fromkeys(range(cpus + 1), 0)
    assert machine.violations() == []
    assert machine.total(Event.PSWPIN) > 0


@pytest.mark.parametrize("protocol", STORMED)
def test_processes_under_pressure_keep_their_data(
    make: Callable[..., SwapMachine], protocol: str
) -> None:
    machine = make("native", protocol, nr_cpus=3, nr_mms=2, nr_frames=1100, nr_swap=4000, users=2)
    run_workers(machine, "touch_and_verify", cpus=2, pages=600, rounds=4)


@pytest.mark.parametrize("protocol", ["classic", "spf", "vma_refcount"])
def test_forks_under_pressure_keep_their_data(
    make: Callable[..., SwapMachine], protocol: str
) -> None:
    machine = make("native", protocol, nr_cpus=2, nr_mms=2, nr_frames=900, nr_swap=6000, users=1)
    run_workers(machine, "touch_and_fork", cpus=1, pages=500, rounds=4)


# When there is no more


def test_out_of_swap_is_out_of_memory(make: Callable[..., SwapMachine]) -> None:
    machine = make(nr_frames=FRAMES, nr_swap=50)
    machine.map(400)
    written = 0
    while machine.on(0, "user_write", AREA + written * PAGE_SIZE, 100 + written) == 0:
        written += 1
    assert machine.event(0, Event.FAULT_OOM) == 1
    assert machine.event(0, Event.SWAP_FULL) > 0
    assert machine.violations() == []
    assert written > FRAMES
    # what is in memory and what is swapped can still be read, one by one
    machine.advise(Madv.DONTNEED, 0, 20)
    assert [machine.read(page) for page in range(20, written)] == list(range(120, 100 + written))
    assert machine.violations() == []


def test_without_memory_a_speculative_fault_leaves_it_to_the_locked_path(
    make: Callable[..., SwapMachine],
) -> None:
    machine = make("native", "spf", nr_frames=FRAMES, users=2)
    machine.fill(400)
    assert machine.event(0, Event.SPF_ABORT_RECLAIM) > 0
    assert machine.event(0, Event.SPF_ABORT_RECLAIM) == machine.event(0, Event.ALLOCSTALL)
    assert machine.violations() == []
