# SPDX-License-Identifier: MIT
"""Huge pages: contents across collapse and split, every call on a part and on the whole."""

import functools
import random
from importlib import import_module

import fork_ops
import huge_ops
import pytest
from fork_ops import Scratch, Wrong
from mm_machine import Machine, renamed, seeds
from protocol_sets import STORMED
from whole_kernel import MODULES, SCHEMES, KernelMachine

from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link
from spfemu.events import Event
from spfemu.layout import PAGE_SIZE, WORD
from spfemu.mm.flags import PMD_SIZE, Errno, Madv, Map, Mremap, Prot, Pte
from spfemu.mm.khugepaged import Scan
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

RW = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
AREA = 1 << 40
ELSEWHERE = 1 << 41
NR = 512
NR_HUGE = 4


@functools.cache
def engine(protocol: str, scheme: str = "rcu", **config: int) -> NativeEngine:
    modules = [functions_of(import_module("spfemu.mm." + module)) for module in MODULES]
    config = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": SCHEMES[scheme], **config}
    return NativeEngine(link([*modules, protocol_functions(protocol)], config))


class HugeMachine(KernelMachine):
    """A machine with huge frames and an area of two huge pages."""

    def __init__(self, protocol="classic", scheme="rcu", **config) -> None:
        geometry = Geometry(nr_frames=4000 + NR_HUGE * NR, nr_huge=NR_HUGE, nr_spare_mms=2)
        Machine.__init__(self, engine(protocol, scheme, **config), Segment.create(geometry))
        self.begin()

    def begin(self, seed: int = 1) -> None:
        self.reset(seed)
        self.map(AREA, 2 * PMD_SIZE)

    def map(self, address: int, length: int) -> None:
        assert self.on(0, "sys_mmap", address, length, RW, FIXED) == address

    def write(self, page: int, value: int, base: int = AREA) -> None:
        assert self.on(0, "user_write", base + page * PAGE_SIZE, value) == 0

    def read(self, page: int, base: int = AREA) -> int:
        error, value = self.on(0, "user_read", base + page * PAGE_SIZE)
        assert error == 0
        return value

    def fill(self, pages: range) -> None:
        for page in pages:
            self.write(page, page + 1)

    def contents(self, base: int = AREA) -> dict[int, int]:
        """Words of both huge pages that are not 0, by page."""
        return {page: value for page in range(2 * NR) if (value := self.read(page, base))}

    def collapse(self, index: int = 0) -> int:
        return self.on(0, "hpage_collapse", self.segment.mm(0), AREA + index * PMD_SIZE, 0)

    def is_huge(self, index: int = 0, mm: int = 0, base: int = AREA) -> bool:
        slot = self.call("find_pmd", self.segment.mm(mm), base + index * PMD_SIZE)
        return slot != 0 and bool(self.segment.word(slot) & Pte.PSE)

    def free_huge(self) -> int:
        return int((self.segment.huge_pages["live"] == 0).sum())

    def event(self, event: Event) -> int:
        return self.total(event)


@pytest.fixture(params=["rcu", "irq"])
def machine(request):
    made = HugeMachine("classic", request.param)
    yield made
    assert made.violations() == []
    assert made.on(0, "sys_munmap", AREA, 2 * PMD_SIZE) == 0
    assert made.on(0, "sys_munmap", ELSEWHERE, 2 * PMD_SIZE) == 0
    assert made.violations() == []
    # nothing has been lost: all huge frames are whole again
    assert made.free_huge() == NR_HUGE
    made.close()


SOME = {page: page + 1 for page in range(0, NR, 7)}


@pytest.fixture
def collapsed(machine):
    """A machine whose first huge page is one, with SOME in it."""
    machine.fill(range(0, NR, 7))
    assert machine.collapse() == Scan.SUCCEED
    assert machine.is_huge()
    return machine


def test_a_collapse_keeps_the_contents(collapsed):
    assert collapsed.contents() == SOME
    assert collapsed.is_huge()
    assert collapsed.event(Event.THP_COLLAPSE) == 1
    assert collapsed.free_huge() == NR_HUGE - 1
    assert collapsed.violations() == []


def test_a_huge_page_is_written_and_read_without_faults(collapsed):
    faults = collapsed.event(Event.PGFAULT)
    collapsed.fill(range(NR))
    assert collapsed.contents() == {page: page + 1 for page in range(NR)}
    # the other half of the area is read through the zero page
    assert collapsed.event(Event.PGFAULT) == faults + NR
    assert collapsed.is_huge()


def test_a_table_full_of_pages_collapses(machine):
    machine.fill(range(NR))
    assert machine.collapse() == Scan.SUCCEED
    assert machine.contents() == {page: page + 1 for page in range(NR)}
    assert int(machine.segment.cpus["rss_anon"][0] + machine.mm["rss_anon"]) == NR


CHANGES_OF_A_PART = {
    "MADV_DONTNEED": ("sys_madvise", 3, Madv.DONTNEED),
    "munmap": ("sys_munmap", 2, None),
    "mprotect": ("sys_mprotect", 3, int(Prot.READ)),
}


@pytest.mark.parametrize("change", CHANGES_OF_A_PART)
def test_a_call_on_a_part_splits(collapsed, change):
    name, _, last = CHANGES_OF_A_PART[change]
    start, length = AREA + 7 * PAGE_SIZE, 7 * PAGE_SIZE
    arguments = (start, length) if last is None else (start, length, last)
    assert collapsed.on(0, name, *arguments) == 0

    assert not collapsed.is_huge()
    assert collapsed.event(Event.THP_SPLIT_PMD) == 1
    assert collapsed.violations() == []
    gone = change != "mprotect"
    kept = {page: value for page, value in SOME.items() if not gone or not 7 <= page < 14}
    found = {page: collapsed.read(page) for page in SOME if page != 7 or change == "mprotect"}
    assert {page: value for page, value in found.items() if value} == kept
    if change == "munmap":
        assert collapsed.on(0, "user_read", start) == (-Errno.EFAULT, 0)
    if change == "mprotect":
        assert collapsed.on(0, "user_write", start, 1) == -Errno.EFAULT


def test_the_rest_of_a_split_page_can_be_collapsed_again(collapsed):
    assert collapsed.on(0, "sys_madvise", AREA, PAGE_SIZE, Madv.DONTNEED) == 0
    assert not collapsed.is_huge()
    assert collapsed.collapse() == Scan.SUCCEED
    assert collapsed.is_huge()
    assert collapsed.contents() == {page: value for page, value in SOME.items() if page}
    assert collapsed.free_huge() == NR_HUGE - 1


def test_a_zap_of_the_whole_frees_the_huge_frame(collapsed):
    assert collapsed.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.DONTNEED) == 0
    assert collapsed.event(Event.THP_SPLIT_PMD) == 0
    assert collapsed.free_huge() == NR_HUGE
    assert collapsed.contents() == {}


def test_mprotect_of_the_whole_keeps_it_huge(collapsed):
    assert collapsed.on(0, "sys_mprotect", AREA, 2 * PMD_SIZE, Prot.READ) == 0
    assert collapsed.on(0, "user_write", AREA, 1) == -Errno.EFAULT
    assert collapsed.read(7) == 8
    assert collapsed.on(0, "sys_mprotect", AREA, 2 * PMD_SIZE, Prot.NONE) == 0
    assert collapsed.on(0, "user_read", AREA)[0] == -Errno.EFAULT
    assert collapsed.violations() == []
    assert collapsed.on(0, "sys_mprotect", AREA, 2 * PMD_SIZE, RW) == 0
    collapsed.write(1, 77)
    assert collapsed.is_huge()
    assert collapsed.contents() == {**SOME, 1: 77}


def test_a_move_splits(collapsed):
    moved = collapsed.on(
        *(0, "sys_mremap", AREA, 2 * PMD_SIZE, 2 * PMD_SIZE),
        *(Mremap.MAYMOVE | Mremap.FIXED, ELSEWHERE),
    )
    assert moved == ELSEWHERE
    assert not collapsed.is_huge(base=ELSEWHERE)
    assert collapsed.contents(ELSEWHERE) == SOME


def test_mincore_sees_all_of_a_huge_page(collapsed):
    vec = collapsed.segment.scratch(0)
    assert collapsed.on(0, "sys_mincore", AREA + 5 * PAGE_SIZE, 2 * PAGE_SIZE, vec) == 0
    assert [collapsed.segment.word(vec + 8 * i) for i in range(2)] == [1, 1]


def test_populating_a_huge_page_touches_nothing(collapsed):
    advice = int(Madv.POPULATE_WRITE)
    assert collapsed.on(0, "sys_madvise", AREA, PMD_SIZE, advice) == 0
    assert collapsed.event(Event.POPULATE_FAULT) == 0
    assert collapsed.is_huge()


# Forks


@pytest.fixture
def forked(collapsed):
    """A process with a huge page, forked; the child runs nowhere and has all at the end."""
    child = collapsed.on(0, "sys_fork")
    assert child > 0
    yield collapsed
    collapsed.on(0, "switch_mm", child)
    assert collapsed.contents() == SOME
    collapsed.on(0, "switch_mm", collapsed.segment.mm(0))
    collapsed.on(0, "mmput", child)


def test_a_fork_shares_a_huge_page(forked):
    assert forked.is_huge()
    assert forked.is_huge(mm=1)
    assert forked.violations() == []
    assert forked.contents() == SOME
    assert forked.free_huge() == NR_HUGE - 1


def test_a_write_to_a_shared_huge_page_splits_and_copies_one_page(forked):
    forked.write(7, 99)
    assert not forked.is_huge()
    assert forked.is_huge(mm=1)
    assert forked.event(Event.WP_COPY) == 1
    assert forked.contents() == {**SOME, 7: 99}
    assert forked.violations() == []


def test_a_shared_huge_page_is_unmapped_by_one(forked):
    assert forked.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.DONTNEED) == 0
    assert forked.free_huge() == NR_HUGE - 1
    assert forked.contents() == {}
    assert forked.violations() == []


def test_pages_that_are_shared_are_copied_by_a_collapse(forked):
    forked.write(7, 99)
    assert forked.collapse() == Scan.EXCEED_SHARED_PTE
    assert forked.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.COLLAPSE) == 0
    assert forked.is_huge()
    assert forked.contents() == {**SOME, 7: 99}


def test_the_last_sharer_writes_in_place(collapsed):
    child = collapsed.on(0, "sys_fork")
    collapsed.on(0, "mmput", child)
    collapsed.write(7, 99)
    assert collapsed.is_huge()
    assert collapsed.event(Event.WP_COPY) == 0


def read_only_and_back(machine, length):
    for prot in (Prot.READ, RW):
        assert machine.on(0, "sys_mprotect", AREA, length, int(prot)) == 0


@pytest.mark.parametrize("length", [PMD_SIZE, PMD_SIZE - PAGE_SIZE], ids=["whole", "part"])
def test_what_a_fork_has_shared_is_found_unshared_by_a_write_fault_alone(collapsed, length):
    """Since 5.19; mprotect, which saves write faults of what never was shared, does not look."""
    collapsed.on(0, "mmput", collapsed.on(0, "sys_fork"))
    read_only_and_back(collapsed, length)
    faults = collapsed.event(Event.PGFAULT)
    collapsed.write(7, 99)
    assert collapsed.event(Event.PGFAULT) == faults + 1
    # from now on it is known: the page of the fault, or the huge page
    read_only_and_back(collapsed, length)
    collapsed.write(7, 98)
    assert collapsed.event(Event.PGFAULT) == faults + 1
    collapsed.write(8, 97)
    assert collapsed.event(Event.PGFAULT) == faults + (1 if length == PMD_SIZE else 2)
    assert collapsed.is_huge() == (length == PMD_SIZE)
    assert collapsed.event(Event.WP_COPY) == 0
    assert collapsed.contents() == {**SOME, 7: 98, 8: 97}


def test_no_frame_for_a_childs_table(collapsed):
    def taken():
        return collapsed.call("alloc_page", collapsed.cpu(0), 3)

    pages = list(iter(taken, 0))
    for _ in range(3):  # the tables above it
        collapsed.call("put_new_page", collapsed.cpu(0), pages.pop())
    assert collapsed.on(0, "sys_fork") == -Errno.ENOMEM
    for page in pages:
        collapsed.call("put_new_page", collapsed.cpu(0), page)
    assert collapsed.is_huge()
    assert collapsed.contents() == SOME


# What is not collapsed


def test_ranges_that_do_not_fit(machine):
    machine.fill(range(3))
    mm = machine.segment.mm(0)
    assert machine.collapse(1) == Scan.PMD_NULL
    assert machine.on(0, "hpage_collapse", mm, AREA - PMD_SIZE, 0) == Scan.VMA_CHECK
    assert machine.on(0, "hpage_collapse", mm, AREA + 2 * PMD_SIZE, 0) == Scan.VMA_CHECK
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.NOHUGEPAGE) == 0
    assert machine.collapse() == Scan.VMA_CHECK
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.COLLAPSE) == -Errno.EINVAL
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.HUGEPAGE) == 0
    assert machine.collapse() == Scan.SUCCEED
    assert machine.collapse() == Scan.PMD_MAPPED
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.COLLAPSE) == 0


def test_a_page_that_somebody_refers_to_is_left_alone(machine):
    machine.fill(range(3))
    entry = machine.call("lookup_pte", machine.segment.mm(0), AREA)
    page = machine.call("virt_to_page", machine.cpu(0), entry & ((1 << 52) - PAGE_SIZE))
    machine.call("get_page", page)
    assert machine.collapse() == Scan.PAGE_COUNT
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.COLLAPSE) == -Errno.EAGAIN
    machine.call("put_page", machine.cpu(0), page)
    assert machine.collapse() == Scan.SUCCEED


def test_nothing_is_collapsed_that_is_only_read(machine):
    machine.write(0, 1)
    assert machine.on(0, "sys_mprotect", AREA, 2 * PMD_SIZE, Prot.READ) == 0
    assert machine.collapse() == Scan.PAGE_RO
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.COLLAPSE) == 0
    assert machine.on(0, "user_write", AREA, 2) == -Errno.EFAULT
    assert machine.read(0) == 1


def test_without_huge_frames_there_is_no_collapse(machine):
    taken = [machine.call("alloc_huge_page", machine.cpu(0)) for _ in range(NR_HUGE)]
    machine.fill(range(3))
    assert machine.collapse() == Scan.ALLOC_HUGE_PAGE_FAIL
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.COLLAPSE) == -Errno.ENOMEM
    for head in taken:
        machine.call("free_huge_page", machine.cpu(0), head)


def test_madvise_collapses_what_fits_and_tells_of_holes(machine):
    machine.fill(range(0, 2 * NR, 5))
    assert machine.on(0, "sys_madvise", AREA, 2 * PMD_SIZE + PAGE_SIZE, Madv.COLLAPSE) == (
        -Errno.ENOMEM
    )
    assert (machine.is_huge(0), machine.is_huge(1)) == (True, True)
    assert machine.on(0, "sys_madvise", ELSEWHERE, PMD_SIZE, Madv.COLLAPSE) == -Errno.ENOMEM


def test_settings(make_configured):
    machine = make_configured(CONFIG_TRANSPARENT_HUGEPAGE_ALWAYS=0)
    machine.fill(range(3))
    assert machine.collapse() == Scan.VMA_CHECK
    assert machine.on(0, "sys_madvise", AREA, PMD_SIZE, Madv.HUGEPAGE) == 0
    assert machine.collapse() == Scan.SUCCEED

    machine = make_configured(CONFIG_KHUGEPAGED_MAX_PTES_NONE=NR - 3)
    machine.fill(range(2))
    assert machine.collapse() == Scan.EXCEED_NONE_PTE
    machine.fill(range(3))
    assert machine.collapse() == Scan.SUCCEED


@pytest.fixture
def make_configured():
    """Make machines with build options."""
    made = []

    def build(**config):
        made.append(HugeMachine(**config))
        return made[-1]

    yield build
    for machine in made:
        assert machine.violations() == []
        machine.close()


# Programs do not notice


def run_program(machine, seed: int, *, collapses: bool) -> list[object]:
    """Make random accesses and calls, with collapses in between or without; what they gave."""
    rng = random.Random(seed)
    machine.begin()
    results: list[object] = []
    for _ in range(120):
        page = rng.randrange(2 * NR)
        start, length = AREA + page * PAGE_SIZE, rng.choice((1, 5, NR)) * PAGE_SIZE
        length = min(length, 2 * PMD_SIZE - page * PAGE_SIZE)
        kind = rng.choice(("write", "write", "read", "read", "zap", "protect", "map", "fork"))
        if kind == "write":
            results.append(machine.on(0, "user_write", start, rng.randrange(1, 1 << 40)))
        elif kind == "read":
            results.append(machine.on(0, "user_read", start))
        elif kind == "zap":
            results.append(machine.on(0, "sys_madvise", start, length, Madv.DONTNEED))
        elif kind == "protect":
            prot = rng.choice((Prot.NONE, Prot.READ, RW, RW))
            results.append(machine.on(0, "sys_mprotect", start, length, prot))
        elif kind == "map":
            results.append(machine.on(0, "sys_mmap", start, length, RW, FIXED))
        else:
            child = machine.on(0, "sys_fork")
            if rng.random() < 0.5:
                results.append(machine.on(0, "user_write", start, 5))
            machine.on(0, "mmput", child)
        half = rng.random() < 0.5
        if collapses and half:
            around = AREA + (page & NR) * PAGE_SIZE
            machine.on(0, "hpage_collapse", machine.segment.mm(0), around, 1)
    return results


def test_random_programs_give_the_same_with_and_without_collapses(machine):
    collapsed = 0
    for seed in seeds(12):
        with_them = run_program(machine, seed, collapses=True)
        assert machine.violations() == [], seed
        collapsed += machine.event(Event.THP_COLLAPSE)
        assert with_them == run_program(machine, seed, collapses=False), seed
    assert collapsed > 12


def test_a_subscriber_to_the_mm_hears_of_collapse_and_split(collapsed):
    subscription = collapsed.on(0, "mmu_notifier_register", collapsed.segment.mm(0))
    for page in (7, 14):
        address = AREA + page * PAGE_SIZE
        assert collapsed.on(0, "notifier_read", subscription, address) == (0, page + 1)
    assert collapsed.on(0, "sys_madvise", AREA, PAGE_SIZE, Madv.DONTNEED) == 0
    assert collapsed.event(Event.THP_SPLIT_PMD) == 1
    assert collapsed.on(0, "notifier_read", subscription, AREA + 7 * PAGE_SIZE) == (0, 8)
    before = collapsed.event(Event.MMU_NOTIFIER_INVALIDATE)
    assert collapsed.collapse() == Scan.SUCCEED
    assert collapsed.event(Event.MMU_NOTIFIER_INVALIDATE) == before + 1
    # what it had were the frames that the collapse has freed
    assert collapsed.violations() == []
    collapsed.write(7, 70)
    assert collapsed.on(0, "notifier_read", subscription, AREA + 7 * PAGE_SIZE) == (0, 70)
    collapsed.on(0, "mmu_notifier_unregister", subscription)


# Processes: two threads count words up, one forks, one makes huge pages and splits them

_OPS = functions_of(huge_ops)
MUTANTS = {
    "": {},
    "no flush": renamed(_OPS, pmdp_collapse_flush="mutant_collapse_without_flush"),
    "splits for writing": renamed(_OPS, pmdp_invalidate="mutant_split_all_clean"),
}


@functools.cache
def storm_engine(protocol: str, scheme: str = "rcu", mutant: str = "") -> NativeEngine:
    modules = [functions_of(import_module("spfemu.mm." + module)) for module in MODULES]
    layers = [*modules, functions_of(fork_ops), _OPS, protocol_functions(protocol)]
    config = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": SCHEMES[scheme]}
    return NativeEngine(link([*layers, MUTANTS[mutant]], config))


class Storm(KernelMachine):
    """A machine for `fork_ops`, whose area is one huge page."""

    def __init__(self, kernel: NativeEngine) -> None:
        geometry = Geometry(
            nr_cpus=4, nr_frames=6000 + 8 * NR, nr_huge=8, nr_vmas=3000, nr_spare_mms=8
        )
        Machine.__init__(self, kernel, Segment.create(geometry))

    def run(self, seed: int, rounds: int) -> list[str]:
        self.reset(seed)
        assert self.on(0, "sys_mmap", AREA, PMD_SIZE, RW, FIXED) == AREA
        with self.workers() as workers:
            workers.start_gated(
                {
                    0: ("fork_writer", self.cpu(0)),
                    1: ("fork_writer", self.cpu(1)),
                    2: ("fork_forker", self.cpu(2), rounds),
                    3: ("huge_collapser", self.cpu(3)),
                }
            )
            assert workers.join()[3] == 0
        words = [
            self.segment.word(self.segment.scratch(offset // WORD))
            for offset in (Scratch.FAILED, Scratch.ADDRESS, Scratch.EXPECTED, Scratch.FOUND)
        ]
        found = self.violations()
        if words[0]:
            name = Wrong(words[0]).name
            found.insert(0, f"{name} at {words[1]:#x}: {words[3]} instead of {words[2]}")
        return found


@pytest.mark.parametrize("scheme", ["rcu", "irq"])
@pytest.mark.parametrize("protocol", STORMED)
def test_threads_write_while_others_fork_and_collapse(protocol, scheme):
    storm = Storm(storm_engine(protocol, scheme))
    for seed in seeds(1):
        assert storm.run(seed, 50) == [], seed
        assert storm.total(Event.THP_COLLAPSE) > 1
        assert storm.total(Event.THP_SPLIT_PMD) > 1
        assert storm.total(Event.WP_COPY) > 1
    storm.close()


@pytest.mark.parametrize("mutant", ["no flush", "splits for writing"])
def test_broken_collapses_and_splits_are_found(mutant):
    storm = Storm(storm_engine("classic", "rcu", mutant))
    assert any(storm.run(seed, 60) for seed in seeds(5))
    storm.close()
