# SPDX-License-Identifier: MIT
"""VMAs: slab, lookup cache, split, the eight cases of merging, anon_vmas."""

from collections.abc import Iterator

import pytest
from tree_ops import MAP_FIXED
from vmas import VmaMachine, check_slabs, check_tree, engine

from spfemu.engines.script import Script, after, before
from spfemu.events import Event
from spfemu.layout import ANON_VMA, CPU, PAGE_SHIFT, PAGE_SIZE, VMACACHE_SIZE, WORD
from spfemu.mm.flags import PMD_SIZE, Errno, Prot, Pte, Vm
from spfemu.mm.slab import CACHE_BATCH, CACHE_MAX
from spfemu.mm.vma import SlabState

BASE = 1 << 40
RW = int(Prot.READ | Prot.WRITE)
RWX = int(RW | Prot.EXEC)
NONE = int(Prot.NONE)


def test_the_length_of_a_cache_stands_behind_its_list():
    assert CPU.vma_count == CPU.vma_list + WORD
    assert CPU.anon_vma_count == CPU.anon_vma_list + WORD


@pytest.fixture
def machine():
    made = VmaMachine()
    yield made
    made.close()


@pytest.fixture
def made():
    """Return a function that makes machines, closed afterwards."""
    machines = []

    def make(*args, **kwargs):
        machines.append(VmaMachine(*args, **kwargs))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def page(index: int) -> int:
    return BASE + index * PAGE_SIZE


def map_pages(machine: VmaMachine, first: int, last: int, prot: int = RW) -> None:
    length = (last - first) * PAGE_SIZE
    assert machine.run("sys_mmap", page(first), length, prot, MAP_FIXED) == page(first)


def protect(machine: VmaMachine, first: int, last: int, prot: int) -> None:
    assert machine.run("sys_mprotect", page(first), (last - first) * PAGE_SIZE, prot) == 0


def touch(machine: VmaMachine, *pages: int) -> None:
    """Store each page's own number into it."""
    for index in pages:
        assert machine.run("user_write", page(index), index) == 0


def pages_of(machine: VmaMachine) -> list[tuple[int, int]]:
    """Ranges of all VMAs, in pages from BASE."""
    return [((s - BASE) >> PAGE_SHIFT, (e - BASE) >> PAGE_SHIFT) for s, e in machine.ranges()]


def check(machine: VmaMachine) -> None:
    check_tree(machine)
    check_slabs(machine)
    for vma in machine.vmas():
        assert vma["vm_pgoff"] == vma["vm_start"] >> PAGE_SHIFT


# The slab.


def test_a_new_vma_is_zeroed_but_for_its_mm(machine):
    machine.segment.vmas["vm_flags"] = machine.segment.vmas["rb_left"] = 77
    vma = machine.slot(machine.run_mm("vm_area_alloc"))
    assert vma["vm_mm"] == machine.segment.mm(0)
    assert vma["slab_state"] == SlabState.IN_USE
    assert vma["generation"] == 1
    names = set(vma.dtype.names) - {"vm_mm", "slab_state", "generation"}
    assert not any(vma[name].any() for name in names)


def test_slots_come_back_and_are_counted_by_generation(machine):
    first = machine.run_mm("vm_area_alloc")
    machine.run("vm_area_free", first)
    assert machine.run_mm("vm_area_alloc") == first
    assert machine.slot(first)["generation"] == 2


def test_a_cpu_keeps_a_bounded_number_of_free_slots(made):
    machine = made(nr_vmas=200)
    slots = [machine.run_mm("vm_area_alloc") for _ in range(200)]
    assert 0 not in slots
    assert len(set(slots)) == 200
    assert machine.run_mm("vm_area_alloc") == 0
    for slot in slots:
        machine.run("vm_area_free", slot)
        assert machine.segment.cpus[0]["vma_count"] <= CACHE_MAX
    check_slabs(machine)


def test_free_slots_reach_another_cpu_through_the_global_list(made):
    machine = made(nr_cpus=2, nr_vmas=64)
    slots = [machine.run_mm("vm_area_alloc") for _ in range(64)]
    assert machine.run_mm("vm_area_alloc", cpu=1) == 0
    for slot in slots[: CACHE_MAX + 1]:
        machine.run("vm_area_free", slot)
    again = [machine.run_mm("vm_area_alloc", cpu=1) for _ in range(CACHE_BATCH)]
    assert set(again) < set(slots)
    # the others are in the cache of CPU 0, which is asked for them now
    again += [machine.run_mm("vm_area_alloc", cpu=1) for _ in range(CACHE_MAX + 2 - CACHE_BATCH)]
    assert again.pop() == 0
    assert sorted(again) == sorted(slots[: CACHE_MAX + 1])


def test_with_several_threads_a_freed_vma_waits_for_a_grace_period(machine):
    machine.mm["mm_users"] = 2
    address = machine.run_mm("vm_area_alloc")
    vma = machine.slot(address)
    vma["vm_start"], vma["vm_end"] = 111, 222
    machine.run("vm_area_free", address)
    assert vma["slab_state"] == SlabState.RCU_PENDING
    # the callback's link lies over the first word, a late reader sees the rest as it was
    assert vma["vm_start"] == 0
    assert vma["vm_end"] == 222
    machine.run("rcu_barrier")
    assert vma["slab_state"] == SlabState.FREE


def test_unmapping_faster_than_grace_periods_end_is_not_out_of_memory(made):
    machine = made(nr_vmas=24)
    machine.mm["mm_users"] = 2
    for _ in range(200):
        map_pages(machine, 0, 3)
        assert machine.run("sys_munmap", page(1), PAGE_SIZE) == 0
        assert machine.run("sys_munmap", page(0), 3 * PAGE_SIZE) == 0
    check(machine)


def test_without_slots_calls_fail_and_leave_everything_as_it_was(made):
    machine = made(nr_vmas=8)
    for index in range(8):
        map_pages(machine, 4 * index, 4 * index + 3)
    before = machine.ranges()
    assert machine.run("sys_mmap", 0, PAGE_SIZE, NONE, 0x22) == -Errno.ENOMEM
    assert machine.run("sys_munmap", page(1), PAGE_SIZE) == -Errno.ENOMEM
    assert machine.run("sys_mprotect", page(1), PAGE_SIZE, RWX) == -Errno.ENOMEM
    assert machine.ranges() == before
    assert machine.event(0, Event.CALL_FAILED) == 3
    check(machine)
    assert machine.run("sys_munmap", page(0), 3 * PAGE_SIZE) == 0
    check(machine)


# The lookup cache.


def cached(machine: VmaMachine, cpu: int = 0) -> set[int]:
    return {int(v) for v in machine.segment.cpus[cpu]["vmacache"]} - {0}


def test_a_found_vma_is_cached_for_addresses_inside_it(machine):
    map_pages(machine, 0, 2)
    found = machine.run_mm("find_vma", page(0))
    assert cached(machine) == {found}
    machine.mm["mm_rb"] = 0
    assert machine.run_mm("find_vma", page(1) + 5) == found
    assert machine.run_mm("find_vma", page(2)) == 0
    assert machine.run_mm("find_vma", page(0) - 1) == 0


def test_unmapping_anything_empties_the_cache_at_the_next_lookup(machine):
    map_pages(machine, 0, 1)
    map_pages(machine, 4, 5)
    machine.run_mm("find_vma", page(0))
    machine.run("sys_munmap", page(4), PAGE_SIZE)
    machine.mm["mm_rb"] = 0
    assert machine.run_mm("find_vma", page(0)) == 0


def test_a_vma_of_another_mm_is_not_taken_from_the_cache(made):
    machine = made(nr_cpus=2, nr_mms=2)
    map_pages(machine, 0, 1)
    found = machine.run_mm("find_vma", page(0))
    machine.slot(found)["vm_mm"] = machine.segment.mm(1)
    machine.mm["mm_rb"] = 0
    assert machine.run_mm("find_vma", page(0)) == 0


def test_lookups_in_a_foreign_mm_leave_the_cache_alone(made):
    machine = made(nr_cpus=2, nr_mms=2)
    map_pages(machine, 0, 1)
    found = machine.run_mm("find_vma", page(0), cpu=1)
    assert found != 0
    assert cached(machine, 1) == set()


def test_each_part_of_the_address_space_has_its_place_in_the_cache(machine):
    step = PMD_SIZE // PAGE_SIZE
    for index in range(VMACACHE_SIZE):
        map_pages(machine, index * step, index * step + 1)
    for index in range(VMACACHE_SIZE):
        machine.run_mm("find_vma", page(index * step))
    assert cached(machine) == {machine.address_of(v) for v in machine.vmas()}


@pytest.mark.parametrize("layer", ["tree_ops", "seqnum_first"])
def test_a_lookup_during_an_unmap_does_not_cache_what_is_being_removed(made, layer):
    """A speculative lookup syncs its cache with the new sequence number, then walks the tree.

    With the order changed the same script shows the locked lookup finding a freed VMA.
    """
    machine = made(nr_cpus=2)
    machine.mm["mm_users"] = 2
    map_pages(machine, 0, 1)
    doomed = int(machine.mm["mmap"])
    mm = machine.segment.mm(0)
    machine.run_mm("find_vma", page(0), cpu=1)
    with Script(engine("stepped", layer), machine.segment) as s:
        writer = s.cpu("W", "sys_munmap", machine.cpu(0), page(0), PAGE_SIZE)
        writer.runs_until(after("vmacache_invalidate"))
        s.cpu("S", "__find_vma", machine.cpu(1), mm, page(0)).runs_to_end()
        assert writer.runs_to_end() == 0
        found = s.cpu("L", "find_vma", machine.cpu(1), mm, page(0)).runs_to_end()
    assert machine.slot(doomed)["slab_state"] == SlabState.RCU_PENDING
    assert found == (doomed if layer == "seqnum_first" else 0)


def test_no_step_of_an_insertion_or_erasure_makes_a_cycle(made):
    """In the order of the stores, what a walk from the root can reach is free of cycles."""
    machine = made(nr_vmas=16)
    stepped = engine("stepped")
    keys = [7, 3, 11, 1, 5, 9, 13, 0, 2, 4, 6, 8, 10, 12]
    slots = {}
    for key in [*keys, *keys]:
        call = ("tree_insert", page(2 * key), page(2 * key + 1))
        if key in slots:
            call = ("tree_erase", slots.pop(key))
        with Script(stepped, machine.segment) as s:
            writer = s.cpu("W", call[0], machine.cpu(0), machine.segment.mm(0), *call[1:])
            while not writer.done:
                writer.takes_steps(1)
                check_no_cycle(machine, int(machine.mm["mm_rb"]), ())
            if call[0] == "tree_insert":
                slots[key] = writer.result
        check_tree(machine)


def check_no_cycle(machine: VmaMachine, address: int, above: tuple[int, ...]) -> None:
    """Follow the links from `address`, below the nodes `above`."""
    if address:
        assert address not in above
        vma = machine.slot(address)
        check_no_cycle(machine, int(vma["rb_left"]), (*above, address))
        check_no_cycle(machine, int(vma["rb_right"]), (*above, address))


# Splitting and merging: pages, protections before, a change, what comes of it.

CASES = {
    # name: (ranges mapped before, (operation, first, last, prot), ranges after, survivor)
    "1": ([(0, 1, RW), (2, 3, RW)], ("map", 1, 2, RW), [(0, 3)], 0),
    "2": ([(0, 1, RW), (4, 5, RW)], ("map", 1, 3, RW), [(0, 3), (4, 5)], 0),
    "3": ([(0, 1, RW), (4, 5, RW)], ("map", 2, 4, RW), [(0, 1), (2, 5)], 1),
    "4": ([(0, 3, RW), (3, 4, RWX)], ("protect", 2, 3, RWX), [(0, 2), (2, 4)], 1),
    "5": ([(0, 1, RW), (1, 4, RWX)], ("protect", 1, 2, RW), [(0, 2), (2, 4)], 0),
    "6": ([(0, 1, RW), (1, 2, RWX), (2, 3, RW)], ("protect", 1, 2, RW), [(0, 3)], 0),
    "7": ([(0, 1, RW), (1, 2, RWX), (3, 4, RW)], ("protect", 1, 2, RW), [(0, 2), (3, 4)], 0),
    "8": ([(0, 1, RWX), (2, 3, RWX), (3, 4, RW)], ("protect", 2, 3, RW), [(0, 1), (2, 4)], 2),
}


@pytest.mark.parametrize("touched", [False, True], ids=["untouched", "touched"])
@pytest.mark.parametrize("case", CASES)
def test_cases_of_vma_merge(machine, case, touched):
    ranges, (operation, first, last, prot), after_, survivor = CASES[case]
    for low, high, before_ in ranges:
        map_pages(machine, low, high, before_)
    pages = [p for low, high, _ in ranges for p in range(low, high)]
    if touched:
        touch(machine, *pages)
    kept = machine.address_of(machine.vmas()[survivor])
    merges = machine.event(0, Event.VMA_MERGE)
    (map_pages if operation == "map" else protect)(machine, first, last, prot)
    if case == "1" and touched:
        after_ = [(0, 2), (2, 3)]  # two anon_vmas cannot become one
    assert pages_of(machine) == after_
    assert kept in [machine.address_of(v) for v in machine.vmas()]
    assert machine.event(0, Event.VMA_MERGE) == merges + 1
    assert machine.event(0, Event.VMA_SPLIT) == 0
    if touched:
        assert [machine.run("user_read", page(p)) for p in pages] == [(0, p) for p in pages]
    check(machine)


def test_a_vma_takes_over_the_anon_vma_of_the_one_it_swallows(machine):
    map_pages(machine, 0, 1)
    map_pages(machine, 2, 3)
    touch(machine, 2)
    map_pages(machine, 1, 2)
    assert pages_of(machine) == [(0, 3)]
    check(machine)
    touch(machine, 0)
    assert machine.segment.anon_vmas["generation"].sum() == 1


@pytest.mark.parametrize(
    ("first", "last", "after_"),
    [(0, 1, [(0, 1), (1, 4)]), (1, 3, [(0, 1), (1, 3), (3, 4)]), (3, 4, [(0, 3), (3, 4)])],
)
def test_mprotect_splits_what_it_cannot_merge(machine, first, last, after_):
    map_pages(machine, 0, 4)
    touch(machine, 0, 1, 2, 3)
    protect(machine, first, last, int(Prot.READ))
    assert pages_of(machine) == after_
    assert machine.event(0, Event.VMA_SPLIT) == len(after_) - 1
    shared = {int(v["anon_vma"]) for v in machine.vmas()}
    assert len(shared) == 1
    assert 0 not in shared
    check(machine)
    assert machine.run("user_write", page(first), 9) == -Errno.EFAULT
    assert machine.run("user_read", page(first)) == (0, first)


def test_different_rights_are_not_merged(machine):
    map_pages(machine, 0, 1, RW)
    map_pages(machine, 1, 2, RWX)
    assert pages_of(machine) == [(0, 1), (1, 2)]


def test_memory_once_writable_stays_accounted_and_does_not_merge_with_what_never_was(machine):
    map_pages(machine, 0, 1, int(Prot.READ))
    map_pages(machine, 1, 2, RW)
    protect(machine, 1, 2, int(Prot.READ))
    assert pages_of(machine) == [(0, 1), (1, 2)]
    assert [bool(v["vm_flags"] & Vm.ACCOUNT) for v in machine.vmas()] == [False, True]


# anon_vmas.


def anon_vmas(machine: VmaMachine) -> list[int]:
    return [int(v["anon_vma"]) for v in machine.vmas()]


def test_the_first_write_makes_an_anon_vma_and_the_last_vma_takes_it_along(machine):
    map_pages(machine, 0, 4)
    assert anon_vmas(machine) == [0]
    assert machine.run("user_read", page(0)) == (0, 0)
    assert anon_vmas(machine) == [0], "the zero page needs none"
    touch(machine, 1)
    assert anon_vmas(machine) != [0]
    machine.run("sys_munmap", page(1), 2 * PAGE_SIZE)
    assert machine.segment.anon_vmas["refcount"].max() == 2
    check(machine)
    machine.run("sys_munmap", page(0), 4 * PAGE_SIZE)
    assert machine.segment.anon_vmas["in_use"].sum() == 0
    check(machine)


def test_neighbours_that_differ_in_rights_only_share_an_anon_vma(machine):
    map_pages(machine, 0, 1, RWX)
    map_pages(machine, 1, 2, RW)
    map_pages(machine, 2, 3, RWX)
    touch(machine, 2)
    touch(machine, 1)
    touch(machine, 0)
    assert len(set(anon_vmas(machine))) == 1
    check(machine)
    protect(machine, 0, 3, RW)
    assert pages_of(machine) == [(0, 3)]
    check(machine)


def test_the_next_vma_lends_its_anon_vma_before_the_previous_one(machine):
    map_pages(machine, 0, 1, RWX)
    map_pages(machine, 2, 3, RWX)
    touch(machine, 0, 2)
    map_pages(machine, 1, 2, RW)
    touch(machine, 1)
    first, second, third = anon_vmas(machine)
    assert first != third
    assert second == third


def test_a_vma_without_anon_vma_takes_in_none_that_has_one(machine):
    """As Linux 5.12; later kernels merge here."""
    map_pages(machine, 0, 1, RW)
    map_pages(machine, 1, 2, RWX)
    touch(machine, 1)
    protect(machine, 1, 2, RW)
    assert pages_of(machine) == [(0, 1), (1, 2)]
    check(machine)


def test_of_two_concurrent_first_writes_one_anon_vma_remains(made):
    machine = made(nr_cpus=2)
    map_pages(machine, 0, 1)
    vma = int(machine.mm["mmap"])
    with Script(engine("stepped"), machine.segment) as s:
        a = s.cpu("A", "anon_vma_prepare", machine.cpu(0), vma)
        b = s.cpu("B", "anon_vma_prepare", machine.cpu(1), vma)
        a.runs_until(before("spin_lock", nth=2))
        assert b.runs_to_end() == 0
        winner = anon_vmas(machine)
        assert a.runs_to_end() == 0
    assert anon_vmas(machine) == winner
    assert machine.segment.anon_vmas["generation"].sum() == 2, "both had made one"
    check(machine)


def test_an_anon_vma_is_ready_before_it_can_be_seen(made):
    machine = made()
    map_pages(machine, 0, 1)
    vma = machine.slot(int(machine.mm["mmap"]))
    with Script(engine("stepped"), machine.segment) as s:
        a = s.cpu("A", "anon_vma_prepare", machine.cpu(0), machine.address_of(vma))
        while vma["anon_vma"] == 0:
            a.takes_steps(1)
        index = (int(vma["anon_vma"]) - machine.segment.address["anon_vmas"]) // ANON_VMA.SIZE
        anon_vma = machine.segment.anon_vmas[index]
        assert (anon_vma["refcount"], anon_vma["in_use"]) == (1, 1)
        a.runs_to_end()


def test_without_anon_vmas_a_write_is_out_of_memory(made):
    machine = made(nr_anon_vmas=1)
    map_pages(machine, 0, 1)
    map_pages(machine, 4, 5)
    touch(machine, 0)
    assert machine.run("user_write", page(4), 1) == -Errno.ENOMEM
    machine.run("sys_munmap", page(0), PAGE_SIZE)
    touch(machine, 4)
    check(machine)


def test_a_cpu_keeps_a_bounded_number_of_free_anon_vmas(made):
    machine = made(nr_cpus=2, nr_anon_vmas=100)
    areas = range(0, 400, 4)
    for first in areas:
        map_pages(machine, first, first + 1)
        touch(machine, first)
    assert machine.segment.anon_vmas["in_use"].all()
    for first in areas:
        machine.run("sys_munmap", page(first), PAGE_SIZE)
        assert machine.segment.cpus[0]["anon_vma_count"] <= CACHE_MAX
    vma = machine.run_mm("tree_insert", page(0), page(1), cpu=1)
    assert machine.run("anon_vma_prepare", vma, cpu=1) == 0
    assert machine.segment.cpus[1]["anon_vma_count"] == CACHE_BATCH - 1
    free = sum(int(c["anon_vma_count"]) for c in machine.segment.cpus)
    free += len(list(anon_vma_chain(machine, int(machine.segment.system["anon_vma_free"]))))
    assert free == 99
    check_slabs(machine)


def anon_vma_chain(machine: VmaMachine, address: int) -> Iterator[int]:
    while address:
        yield address
        index = (address - machine.segment.address["anon_vmas"]) // ANON_VMA.SIZE
        address = int(machine.segment.anon_vmas[index]["next_free"])


@pytest.mark.parametrize(
    ("vm_flags", "present", "executable"),
    [
        (0, False, True),
        (Vm.READ, True, False),
        (Vm.WRITE, True, False),
        (Vm.READ | Vm.WRITE, True, False),
        (Vm.EXEC, True, True),
        (Vm.READ | Vm.WRITE | Vm.EXEC, True, True),
    ],
)
def test_page_protection_is_never_writable(machine, vm_flags, present, executable):
    prot = Pte(machine.call("vm_get_page_prot", int(vm_flags), 0))
    assert Pte.RW not in prot
    assert (Pte.PRESENT in prot, Pte.USER in prot, Pte.PROTNONE in prot) == (
        present,
        present,
        not present,
    )
    assert (Pte.NX not in prot) == executable
    assert Pte.ACCESSED in prot
