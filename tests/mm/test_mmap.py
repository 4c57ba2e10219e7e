# SPDX-License-Identifier: MIT
"""System calls on memory against a model that knows single pages only, and their errnos."""

from itertools import groupby
from random import Random

import pytest
from tree_ops import MAP_FIXED
from vmas import VmaMachine, check_slabs, check_tree

from spfemu.events import Event
from spfemu.layout import CPU, PAGE_SHIFT, PAGE_SIZE, WORD
from spfemu.mm.flags import DEFAULT_MAP_COUNT, MMAP_MIN_ADDR, TASK_SIZE, Errno, Madv, Map, Prot, Vm
from spfemu.mm.mmap_lock import HELD_READ, HELD_WRITE
from spfemu.segment import BRK_START, MMAP_BASE

ANON = int(Map.PRIVATE | Map.ANONYMOUS)
NOREPLACE = int(ANON | Map.FIXED_NOREPLACE)
READ, WRITE = int(Prot.READ), int(Prot.WRITE)
RW = READ | WRITE
DONTNEED = int(Madv.DONTNEED)
HUGE = 1 << 62


class PageModel:
    """What Linux 5.12 does, page by page: {page number: (rights, accounted)}.

    VMAs are maximal runs of like pages, which holds as long as no page is touched.
    """

    def __init__(self) -> None:
        self.pages: dict[int, tuple[int, bool]] = {}
        self.brk = BRK_START

    def vmas(self) -> list[tuple[int, int, int]]:
        """Start, end and vm_flags of each VMA."""
        runs = []
        numbered = enumerate(sorted(self.pages.items()))
        for (_, kind), run in groupby(numbered, lambda item: (item[1][0] - item[0], item[1][1])):
            numbers = [number for _, (number, _) in run]
            rights, accounted = kind
            flags = rights | Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC | (accounted and Vm.ACCOUNT)
            end = (numbers[-1] + 1) << PAGE_SHIFT
            runs.append((numbers[0] << PAGE_SHIFT, end, int(flags)))
        return runs

    def set(self, start: int, count: int, rights: int) -> None:
        """Map pages afresh."""
        first = start >> PAGE_SHIFT
        for number in range(first, first + count):
            self.pages[number] = (rights, bool(rights & WRITE))

    def free(self, start: int, count: int) -> bool:
        first = start >> PAGE_SHIFT
        return not any(n in self.pages for n in range(first, first + count))

    def highest_gap(self, count: int) -> int:
        """Address of the highest free range below mmap_base."""
        number = (MMAP_BASE >> PAGE_SHIFT) - count
        while not self.free(number << PAGE_SHIFT, count):
            number -= 1
        return number << PAGE_SHIFT

    def sys_mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        count = -(-length // PAGE_SIZE)
        fixed = flags & (Map.FIXED | Map.FIXED_NOREPLACE)
        if fixed and addr % PAGE_SIZE:
            return -Errno.EINVAL
        if flags & Map.FIXED_NOREPLACE and not self.free(addr, count):
            return -Errno.EEXIST
        if not fixed:
            addr -= addr % PAGE_SIZE
            if addr == 0 or not self.free(addr, count):
                addr = self.highest_gap(count)
        self.set(addr, count, prot)
        return addr

    def sys_munmap(self, addr: int, length: int) -> int:
        if addr % PAGE_SIZE or length == 0:
            return -Errno.EINVAL
        first = addr >> PAGE_SHIFT
        for number in range(first, first - (-length // PAGE_SIZE)):
            self.pages.pop(number, None)
        return 0

    def sys_mprotect(self, addr: int, length: int, prot: int) -> int:
        if addr % PAGE_SIZE:
            return -Errno.EINVAL
        first = addr >> PAGE_SHIFT
        for number in range(first, first - (-length // PAGE_SIZE)):
            if number not in self.pages:
                return -Errno.ENOMEM
            accounted = self.pages[number][1] or bool(prot & WRITE)
            self.pages[number] = (prot, accounted)
        return 0

    def sys_madvise(self, addr: int, length: int, advice: int) -> int:
        if addr % PAGE_SIZE or advice != DONTNEED:
            return -Errno.EINVAL
        return 0 if self._all_mapped(addr, length) else -Errno.ENOMEM

    def _all_mapped(self, addr: int, length: int) -> bool:
        first = addr >> PAGE_SHIFT
        return all(n in self.pages for n in range(first, first - (-length // PAGE_SIZE)))

    def sys_brk(self, brk: int) -> int:
        if brk < BRK_START:
            return self.brk
        old_end, new_end = (-(-end // PAGE_SIZE) * PAGE_SIZE for end in (self.brk, brk))
        grown = (new_end - old_end) >> PAGE_SHIFT
        if grown > 0:
            if not self.free(old_end, grown + 1):
                return self.brk
            self.set(old_end, grown, RW)
        elif grown < 0:
            self.sys_munmap(new_end, old_end - new_end)
        self.brk = brk
        return brk


WINDOWS = (BRK_START, MMAP_BASE - 40 * PAGE_SIZE)
"""Where the programs work: the heap, and the top of the area for mappings."""
WINDOW_PAGES = 40


def random_call(rng: Random) -> tuple[str, tuple[int, ...]]:
    """Choose a call; most hit something, some are wrong."""
    page = rng.randrange(WINDOW_PAGES)
    addr = rng.choice(WINDOWS) + page * PAGE_SIZE + rng.choice([0] * 30 + [8])
    length = rng.randint(1, min(8, WINDOW_PAGES - page)) * PAGE_SIZE - rng.choice([0, 0, 0, 100])
    prot = rng.choice([0, READ, READ, RW, RW, RW, RW | int(Prot.EXEC)])
    kind = rng.randrange(16)
    if kind < 5:
        return "sys_mmap", (addr, length, prot, MAP_FIXED)
    if kind < 7:
        return "sys_mmap", (rng.choice([0, addr]), length, prot, rng.choice([ANON, NOREPLACE]))
    if kind < 10:
        return "sys_munmap", (addr, length)
    if kind < 13:
        return "sys_mprotect", (addr, length, prot)
    if kind < 14:
        return "sys_madvise", (addr, length, rng.choice([DONTNEED] * 5 + [7]))
    return "sys_brk", (BRK_START + rng.randint(-1, 12 * PAGE_SIZE),)


def vmas_of(machine: VmaMachine) -> list[tuple[int, int, int]]:
    return [(int(v["vm_start"]), int(v["vm_end"]), int(v["vm_flags"])) for v in machine.vmas()]


def compare_random_program(machine: VmaMachine, seed: int, calls: int) -> None:
    rng = Random(seed)
    model = PageModel()
    for number in range(calls):
        name, arguments = random_call(rng)
        if name == "sys_mmap" and arguments[0] == 0:
            arguments = (0, *arguments[1:3], ANON)
        text = f"seed {seed}, call {number}: {name}({', '.join(map(hex, arguments))})"
        assert machine.run(name, *arguments) == getattr(model, name)(*arguments), text
        assert vmas_of(machine) == model.vmas(), text
        check_tree(machine)
        assert machine.mm["total_vm"] == len(model.pages), text
        assert machine.mm["brk"] == model.brk, text
        for vma in machine.vmas():
            flags = int(vma["vm_flags"])
            assert vma["vm_page_prot"] == machine.call("vm_get_page_prot", flags, 0), text
            assert vma["vm_pgoff"] == vma["vm_start"] >> PAGE_SHIFT, text
    check_slabs(machine)


@pytest.fixture
def machine():
    made = VmaMachine()
    yield made
    made.close()


@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize("seed", range(15))
def test_random_programs_do_what_the_page_model_says(machine, seed, users):
    machine.mm["mm_users"] = users
    compare_random_program(machine, seed, 200)


@pytest.mark.parametrize("seed", [101, 102])
def test_random_programs_on_the_plain_engine(seed):
    machine = VmaMachine("plain")
    compare_random_program(machine, seed, 100)
    machine.close()


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_with_data_keep_it_where_it_is_mapped(machine, seed):
    """Every page is written now and then; what is read is what was written, or a fault.

    VMAs that have pages are not always merged, so only their union is compared.
    """
    rng = Random(1000 + seed)
    model = PageModel()
    data: dict[int, int] = {}
    for number in range(150):
        name, arguments = random_call(rng)
        if name == "sys_mmap":
            arguments = (arguments[0] or WINDOWS[0], *arguments[1:3], arguments[3] | Map.FIXED)
        touch_some(machine, rng, model, data)
        before = dict(model.pages)
        text = f"seed {seed}, call {number}: {name}({', '.join(map(hex, arguments))})"
        result = getattr(model, name)(*arguments)
        assert machine.run(name, *arguments) == result, text
        forget(data, before, model, name, arguments, result)
        check_tree(machine)
        runs = {n: flags & 7 for s, e, flags in vmas_of(machine)
                for n in range(s >> PAGE_SHIFT, e >> PAGE_SHIFT)}  # fmt: skip
        assert runs == {n: rights for n, (rights, _) in model.pages.items()}, text
        for page, (rights, _) in model.pages.items():
            expected = (0, data.get(page, 0)) if rights else (-Errno.EFAULT, 0)
            assert machine.run("user_read", page << PAGE_SHIFT) == expected, text
    check_slabs(machine)
    for start in WINDOWS:
        machine.run("sys_munmap", start, 64 * PAGE_SIZE)
    assert machine.mm["map_count"] == 0
    assert machine.mm["rss_anon"] == 0
    assert machine.mm["pgtables"] == 1
    machine.run("rcu_barrier")
    assert (machine.segment.anon_vmas["in_use"] == 0).all()


def touch_some(machine: VmaMachine, rng: Random, model: PageModel, data: dict[int, int]) -> None:
    for page in rng.sample(sorted(model.pages), min(4, len(model.pages))):
        value = rng.randrange(1 << 40)
        allowed = model.pages[page][0] & WRITE
        expected = 0 if allowed else -Errno.EFAULT
        assert machine.run("user_write", page << PAGE_SHIFT, value) == expected
        if allowed:
            data[page] = value


def forget(data, before, model, name, arguments, result) -> None:
    """Drop the data of pages that the call has unmapped, mapped afresh or been told to drop."""
    for page in [p for p in data if p not in model.pages]:
        del data[page]
    if name in ("sys_mmap", "sys_madvise") and result in (arguments[0], 0, -Errno.ENOMEM):
        if name == "sys_madvise" or result >= 0:
            first = arguments[0] >> PAGE_SHIFT
            for page in range(first, first - (-arguments[1] // PAGE_SIZE)):
                data.pop(page, None)


def test_the_model_notices_a_wrong_kernel(machine):
    """The same comparison over a kernel in which a VMA loses a right behind the model's back."""
    machine.run("sys_mmap", WINDOWS[0] + PAGE_SIZE, PAGE_SIZE, READ, MAP_FIXED)
    with pytest.raises(AssertionError, match="seed 1, call"):
        compare_random_program(machine, 1, 200)


# Placement.


def test_mappings_are_placed_from_the_top_and_merged(machine):
    first = machine.run("sys_mmap", 0, 3 * PAGE_SIZE, RW, ANON)
    assert first == MMAP_BASE - 3 * PAGE_SIZE
    assert machine.run("sys_mmap", 0, 1, RW, ANON) == first - PAGE_SIZE
    assert machine.mm["map_count"] == 1


def test_the_highest_gap_that_fits_is_taken(machine):
    top = machine.run("sys_mmap", 0, 20 * PAGE_SIZE, RW, ANON)
    machine.run("sys_munmap", top + 2 * PAGE_SIZE, 4 * PAGE_SIZE)
    machine.run("sys_munmap", top + 10 * PAGE_SIZE, 2 * PAGE_SIZE)
    assert machine.run("sys_mmap", 0, 2 * PAGE_SIZE, READ, ANON) == top + 10 * PAGE_SIZE
    assert machine.run("sys_mmap", 0, 3 * PAGE_SIZE, READ, ANON) == top + 3 * PAGE_SIZE
    assert machine.run("sys_mmap", 0, 2 * PAGE_SIZE, READ, ANON) == top - 2 * PAGE_SIZE


def test_a_hint_is_rounded_and_followed_if_the_range_is_free(machine):
    hint = 1 << 40
    assert machine.run("sys_mmap", hint + 5, PAGE_SIZE, RW, ANON) == hint
    assert machine.run("sys_mmap", hint, PAGE_SIZE, RW, ANON) == MMAP_BASE - PAGE_SIZE
    assert machine.run("sys_mmap", 1, PAGE_SIZE, RW, ANON) == MMAP_BASE - 2 * PAGE_SIZE
    assert machine.run("sys_mmap", PAGE_SIZE, PAGE_SIZE, RW, ANON) == MMAP_MIN_ADDR
    assert machine.run("sys_mmap", -PAGE_SIZE, PAGE_SIZE, RW, ANON) == MMAP_BASE - 3 * PAGE_SIZE
    assert machine.run("sys_mmap", TASK_SIZE, PAGE_SIZE, RW, ANON) == MMAP_BASE - 4 * PAGE_SIZE


def test_without_room_below_mmap_base_the_search_goes_up_from_a_third(machine):
    whole = MMAP_BASE - MMAP_MIN_ADDR
    assert machine.run("sys_mmap", 0, whole, 0, ANON) == MMAP_MIN_ADDR
    assert machine.run("sys_mmap", 0, PAGE_SIZE, RW, ANON) == MMAP_BASE
    assert machine.run("sys_mmap", 0, PAGE_SIZE, READ, ANON) == MMAP_BASE + PAGE_SIZE
    rest = TASK_SIZE - MMAP_BASE - 2 * PAGE_SIZE
    assert machine.run("sys_mmap", 0, rest + 1, RW, ANON) == -Errno.ENOMEM
    assert machine.run("sys_mmap", 0, rest, RW, ANON) == MMAP_BASE + 2 * PAGE_SIZE
    assert machine.run("sys_mmap", 0, PAGE_SIZE, RW, ANON) == -Errno.ENOMEM
    check_tree(machine)


@pytest.mark.parametrize("seed", range(20))
def test_the_search_from_above_finds_what_a_plain_search_finds(machine, seed):
    rng = Random(seed)
    taken: list[int] = []
    for _ in range(rng.randint(1, 25)):
        first = (taken[-1] + 1 if taken else 1) + rng.randint(0, 6)
        taken += range(first, first + rng.randint(1, 9))
    for page in rng.sample(taken, len(taken)):
        assert machine.run_mm("tree_insert", page * PAGE_SIZE, (page + 1) * PAGE_SIZE) != 0
    for _ in range(50):
        count = rng.randint(1, 5)
        low, high = sorted((rng.randint(1, 150), rng.randint(1, 150)))
        expected = highest_free(set(taken), count, low, high)
        found = machine.run_mm(
            "unmapped_area_topdown",
            *(pages * PAGE_SIZE for pages in (count, low, high)),
        )
        assert found == expected, (seed, count, low, high)


def highest_free(taken: set[int], count: int, low: int, high: int) -> int:
    """Address of the highest `count` free pages within pages [low, high), or -ENOMEM."""
    for page in range(high - count, low - 1, -1):
        if taken.isdisjoint(range(page, page + count)):
            return page * PAGE_SIZE
    return -Errno.ENOMEM


# Errors.

LAST = TASK_SIZE - PAGE_SIZE
MMAP_ERRORS = [
    ((0, 0, RW, ANON), Errno.EINVAL),
    ((0, PAGE_SIZE, RW, Map.PRIVATE), Errno.EBADF),
    ((0, PAGE_SIZE, RW, Map.ANONYMOUS), Errno.EINVAL),
    ((0, PAGE_SIZE, RW, Map.ANONYMOUS | Map.SHARED_VALIDATE), Errno.EINVAL),
    ((0, -1, RW, ANON), Errno.ENOMEM),
    ((0, TASK_SIZE + 1, RW, ANON), Errno.ENOMEM),
    ((0, TASK_SIZE, RW, ANON), Errno.ENOMEM),
    ((0, (1 << 63) - 1, RW, ANON), Errno.ENOMEM),
    ((LAST, 2 * PAGE_SIZE, RW, MAP_FIXED), Errno.ENOMEM),
    ((TASK_SIZE, PAGE_SIZE, RW, MAP_FIXED), Errno.ENOMEM),
    ((-PAGE_SIZE, PAGE_SIZE, RW, MAP_FIXED), Errno.ENOMEM),
    ((LAST - 8, PAGE_SIZE, RW, MAP_FIXED), Errno.EINVAL),
    ((MMAP_MIN_ADDR - PAGE_SIZE, PAGE_SIZE, RW, MAP_FIXED), Errno.EPERM),
    ((0, PAGE_SIZE, RW, MAP_FIXED), Errno.EPERM),
    ((LAST, PAGE_SIZE, RW, NOREPLACE), Errno.EEXIST),
]
MUNMAP_ERRORS = [
    ((LAST, 0), Errno.EINVAL),
    ((LAST + 1, PAGE_SIZE), Errno.EINVAL),
    ((LAST, -1), Errno.EINVAL),
    ((LAST, PAGE_SIZE + 1), Errno.EINVAL),
    ((TASK_SIZE + PAGE_SIZE, PAGE_SIZE), Errno.EINVAL),
    ((-PAGE_SIZE, PAGE_SIZE), Errno.EINVAL),
    ((0, HUGE), Errno.EINVAL),
]
MPROTECT_ERRORS = [
    ((LAST + 8, PAGE_SIZE, RW), Errno.EINVAL),
    ((LAST + 8, 0, RW), Errno.EINVAL),
    ((LAST, PAGE_SIZE, 0x10), Errno.EINVAL),
    ((LAST - PAGE_SIZE, PAGE_SIZE, RW), Errno.ENOMEM),
    ((LAST, 2 * PAGE_SIZE, RW), Errno.ENOMEM),
    ((LAST, -1, RW), Errno.ENOMEM),
    ((LAST, HUGE, RW), Errno.ENOMEM),
    ((-PAGE_SIZE, PAGE_SIZE, RW), Errno.ENOMEM),
    ((TASK_SIZE, PAGE_SIZE, RW), Errno.ENOMEM),
]
MADVISE_ERRORS = [
    ((LAST, PAGE_SIZE, 99), Errno.EINVAL),
    ((LAST + 8, PAGE_SIZE, DONTNEED), Errno.EINVAL),
    ((LAST, -1, DONTNEED), Errno.EINVAL),
    ((LAST, 2 * PAGE_SIZE, DONTNEED), Errno.ENOMEM),
    ((LAST, HUGE, DONTNEED), Errno.ENOMEM),
    ((TASK_SIZE, PAGE_SIZE, DONTNEED), Errno.ENOMEM),
    ((-2 * PAGE_SIZE, PAGE_SIZE, DONTNEED), Errno.ENOMEM),
]


@pytest.mark.parametrize(
    ("name", "arguments", "errno"),
    [
        *(("sys_mmap", *row) for row in MMAP_ERRORS),
        *(("sys_munmap", *row) for row in MUNMAP_ERRORS),
        *(("sys_mprotect", *row) for row in MPROTECT_ERRORS),
        *(("sys_madvise", *row) for row in MADVISE_ERRORS),
    ],
)
@pytest.mark.parametrize("engine_name", ["native", "plain"])
def test_errors(engine_name, name, arguments, errno):
    """Nothing is mapped but the last page of the address space; the call fails and counts."""
    machine = VmaMachine(engine_name)
    assert machine.run("sys_mmap", LAST, PAGE_SIZE, READ, MAP_FIXED) == LAST
    assert machine.run(name, *map(int, arguments)) == -errno
    assert machine.ranges() == [(LAST, TASK_SIZE)]
    assert machine.event(0, Event.CALL_FAILED) == 1
    # the lock is free again
    assert machine.run("sys_munmap", LAST, PAGE_SIZE) == 0
    assert machine.mm["mmap_seq"] % 2 == 0
    machine.close()


def test_calls_that_have_nothing_to_do_succeed(machine):
    assert machine.run("sys_munmap", LAST, PAGE_SIZE) == 0
    assert machine.run("sys_munmap", TASK_SIZE - PAGE_SIZE, 1) == 0
    assert machine.run("sys_mprotect", LAST, 0, 99) == 0
    assert machine.run("sys_madvise", LAST, 0, DONTNEED) == 0
    assert machine.run("sys_mmap", LAST, 1, 8, MAP_FIXED) == LAST, "unknown rights are dropped"
    assert machine.run("sys_mprotect", LAST, 1, 8) == 0, "PROT_SEM means nothing"
    assert machine.vmas()[0]["vm_page_prot"] == machine.call("vm_get_page_prot", 0, 0)
    assert machine.event(0, Event.CALL_FAILED) == 0


def test_a_fatal_signal_ends_the_wait_for_the_lock(machine):
    machine.call("mmap_read_lock", machine.cpu(0), machine.segment.mm(0))
    machine.segment.cpus[0]["fatal_signal"] = 1
    assert machine.run("sys_mmap", 0, PAGE_SIZE, RW, ANON) == -Errno.EINTR
    assert machine.run("sys_munmap", 0, PAGE_SIZE) == -Errno.EINTR
    assert machine.run("sys_mprotect", 0, PAGE_SIZE, RW) == -Errno.EINTR
    assert machine.run("sys_brk", BRK_START + 1) == -Errno.EINTR
    assert machine.mm["mmap_seq"] == 0
    assert machine.event(0, Event.CALL_FAILED) == 4


def test_every_call_is_counted(machine):
    addr = machine.run("sys_mmap", 0, PAGE_SIZE, RW, ANON)
    machine.run("sys_mprotect", addr, PAGE_SIZE, READ)
    machine.run("sys_madvise", addr, PAGE_SIZE, DONTNEED)
    machine.run("sys_munmap", addr, PAGE_SIZE)
    machine.run("sys_brk", 0)
    for event in ("CALL_MMAP", "CALL_MPROTECT", "CALL_MADVISE", "CALL_MUNMAP", "CALL_BRK"):
        assert machine.event(0, Event[event]) == 1


def test_the_number_of_vmas_is_limited():
    """Each step as in Linux: mmap may reach one above the limit, splits may not."""
    machine = VmaMachine(nr_vmas=DEFAULT_MAP_COUNT + 64)
    step = 4 * PAGE_SIZE
    base = 1 << 40
    for index in range(DEFAULT_MAP_COUNT):
        assert machine.run("sys_mmap", base + index * step, 3 * PAGE_SIZE, RW, MAP_FIXED) > 0
    assert machine.mm["map_count"] == DEFAULT_MAP_COUNT
    middle = base + PAGE_SIZE
    assert machine.run("sys_munmap", middle, PAGE_SIZE) == -Errno.ENOMEM
    assert machine.run("sys_mprotect", middle, PAGE_SIZE, READ) == -Errno.ENOMEM
    assert machine.run("sys_mmap", 0, PAGE_SIZE, READ, ANON) == MMAP_BASE - PAGE_SIZE
    assert machine.run("sys_mmap", 0, PAGE_SIZE, RW, ANON) == -Errno.ENOMEM
    assert machine.run("sys_brk", BRK_START + 1) == BRK_START
    # taking the end of a VMA makes no new one for long
    assert machine.run("sys_munmap", base + 2 * PAGE_SIZE, PAGE_SIZE) == 0
    assert machine.mm["map_count"] == DEFAULT_MAP_COUNT + 1
    machine.close()


# The heap.


def test_the_heap_grows_shrinks_and_stops_before_its_neighbour(machine):
    grow = machine.run("sys_brk", BRK_START + 3 * PAGE_SIZE + 1)
    assert grow == BRK_START + 3 * PAGE_SIZE + 1
    assert machine.ranges() == [(BRK_START, BRK_START + 4 * PAGE_SIZE)]
    assert machine.run("sys_brk", 0) == grow, "below the heap a call only asks"
    neighbour = BRK_START + 8 * PAGE_SIZE
    machine.run("sys_mmap", neighbour, PAGE_SIZE, READ, MAP_FIXED)
    assert machine.run("sys_brk", neighbour - PAGE_SIZE + 1) == grow, "a page stays free"
    assert machine.run("sys_brk", TASK_SIZE + 1) == grow
    assert machine.run("sys_brk", -1) == grow
    assert machine.event(0, Event.CALL_FAILED) == 3
    assert machine.run("sys_brk", neighbour - PAGE_SIZE) == neighbour - PAGE_SIZE
    assert machine.run("sys_brk", BRK_START) == BRK_START
    assert machine.ranges() == [(neighbour, neighbour + PAGE_SIZE)]
    check_tree(machine)


def test_a_heap_that_cannot_shrink_stays_as_it_was():
    """Its VMA has been merged with one behind it, and there is none for splitting it."""
    machine = VmaMachine(nr_vmas=1)
    end = machine.run("sys_brk", BRK_START + 2 * PAGE_SIZE)
    assert machine.run("sys_mmap", end, PAGE_SIZE, RW, MAP_FIXED) == end
    assert machine.run("sys_brk", BRK_START + PAGE_SIZE) == end
    assert machine.mm["brk"] == end
    assert machine.ranges() == [(BRK_START, end + PAGE_SIZE)]
    assert machine.event(0, Event.CALL_FAILED) == 1
    machine.close()


# What is promised to unmap_region and to those who wait for the lock.


class Unmap:
    """What the stand-in for unmap_region has seen."""

    def __init__(self, machine: VmaMachine) -> None:
        at = machine.cpu(0) + CPU.workload
        words = [machine.segment.word(at + i * WORD) for i in range(7)]
        self.calls, self.prev_end, self.next_start, self.held, self.odd, *self.range = words


def recorded(call: str, *arguments: int) -> Unmap:
    """Run a call on [A] [B B] [C] [D], one page between them, and return what it unmaps."""
    machine = VmaMachine(layer="record_unmap")
    for first, pages in ((0, 1), (2, 2), (5, 1), (7, 1)):
        machine.run("sys_mmap", at(first), pages * PAGE_SIZE, RW, MAP_FIXED)
    assert machine.run(call, *arguments) >= 0
    check_tree(machine)
    check_slabs(machine)
    seen = Unmap(machine)
    machine.close()
    return seen


def at(page: int) -> int:
    return (1 << 40) + page * PAGE_SIZE


@pytest.mark.parametrize(
    ("first", "last", "prev_end", "next_start", "unmapped"),
    [
        (2, 6, 1, 7, (2, 6)),
        (0, 1, None, 2, (0, 1)),
        (7, 8, 6, None, (7, 8)),
        (0, 8, None, None, (0, 8)),
        (3, 4, 3, 5, (3, 4)),
        (2, 3, 1, 3, (2, 3)),
        (3, 8, 3, None, (3, 8)),
    ],
)
def test_munmap_zaps_detached_vmas_under_the_downgraded_lock(
    first, last, prev_end, next_start, unmapped
):
    seen = recorded("sys_munmap", at(first), at(last) - at(first))
    assert (seen.calls, seen.held, seen.odd) == (1, HELD_READ, 0)
    assert seen.prev_end == (0 if prev_end is None else at(prev_end))
    assert seen.next_start == (0 if next_start is None else at(next_start))
    assert seen.range == [at(unmapped[0]), at(unmapped[1])]


def test_a_fixed_mapping_zaps_what_it_replaces_under_the_write_lock():
    seen = recorded("sys_mmap", at(2), PAGE_SIZE, RW, MAP_FIXED)
    assert (seen.calls, seen.held, seen.odd) == (1, HELD_WRITE, 1)
    assert seen.range == [at(2), at(3)]


def test_a_shrinking_heap_zaps_under_the_downgraded_lock():
    machine = VmaMachine(layer="record_unmap")
    machine.run("sys_brk", BRK_START + 2 * PAGE_SIZE)
    machine.run("sys_brk", BRK_START + PAGE_SIZE)
    seen = Unmap(machine)
    assert (seen.calls, seen.held, seen.odd) == (1, HELD_READ, 0)
    assert machine.mm["brk"] == BRK_START + PAGE_SIZE
    machine.close()


def test_mprotect_goes_on_until_the_first_hole(machine):
    machine.run("sys_mmap", at(0), 2 * PAGE_SIZE, RW, MAP_FIXED)
    machine.run("sys_mmap", at(3), PAGE_SIZE, RW, MAP_FIXED)
    assert machine.run("sys_mprotect", at(1), 3 * PAGE_SIZE, READ) == -Errno.ENOMEM
    assert [flags & 7 for _, _, flags in vmas_of(machine)] == [RW, READ, RW]


def test_dontneed_drops_what_is_mapped_beyond_holes_and_changes_no_vma(machine):
    machine.run("sys_mmap", at(0), 2 * PAGE_SIZE, RW, MAP_FIXED)
    machine.run("sys_mmap", at(3), PAGE_SIZE, RW, MAP_FIXED)
    for page in (0, 1, 3):
        machine.run("user_write", at(page), 7)
    before, seq = vmas_of(machine), int(machine.mm["mmap_seq"])
    assert machine.run("sys_madvise", at(1), 3 * PAGE_SIZE, DONTNEED) == -Errno.ENOMEM
    assert [machine.run("user_read", at(page))[1] for page in (0, 1, 3)] == [7, 0, 0]
    assert vmas_of(machine) == before
    assert machine.mm["mmap_seq"] == seq, "a reader's work moves no sequence count"
