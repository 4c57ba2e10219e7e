# SPDX-License-Identifier: MIT
"""Frames: per-CPU lists over the pool, references, and what happens when there are none left."""

from collections.abc import Iterator
from typing import Any

import pytest
from mm_machine import seeds
from whole_kernel import KernelMachine, kernel_engine

from spfemu.engines.plain import KernelPanic
from spfemu.events import Event
from spfemu.layout import PAGE, PAGE_SIZE
from spfemu.mm.bug import Bug
from spfemu.mm.flags import PageKind
from spfemu.mm.page_alloc import PCP_BATCH

ENGINES = ("native", "plain")
NR_FRAMES = 2 + 3 * PCP_BATCH + 5
"""The zero page, a top-level table, three chains and five single frames."""


@pytest.fixture(params=ENGINES)
def machine(request: pytest.FixtureRequest) -> Iterator[KernelMachine]:
    """Two CPUs and few frames."""
    made = KernelMachine(kernel_engine(request.param), nr_cpus=2, nr_frames=NR_FRAMES)
    yield made
    made.close()


def alloc(machine: KernelMachine, cpu: int = 0) -> int:
    return machine.on(cpu, "alloc_page", PageKind.ANON)


def page(machine: KernelMachine, address: int) -> Any:
    """The PAGE at an address as a record."""
    index, rest = divmod(address - machine.segment.address["vmemmap"], PAGE.SIZE)
    assert rest == 0
    return machine.segment.pages[index]


def test_initial_pool(machine: KernelMachine) -> None:
    assert machine.segment.system["zone_free"] == NR_FRAMES - 2
    assert machine.violations() == []


def test_new_page_has_one_reference_and_its_kind(machine: KernelMachine) -> None:
    new = page(machine, alloc(machine))
    assert (new["refcount"], new["flags"], new["mapcount"]) == (1, PageKind.ANON, 0)


def test_address_and_page_belong_together(machine: KernelMachine) -> None:
    address = alloc(machine)
    frame = machine.on(0, "page_address", address)
    index = (address - machine.segment.address["vmemmap"]) // PAGE.SIZE
    assert frame == machine.segment.address["frames"] + index * PAGE_SIZE
    for inside in (frame, frame + 8, frame + PAGE_SIZE - 8):
        assert machine.on(0, "virt_to_page", inside) == address


def test_every_frame_is_given_out_once(machine: KernelMachine) -> None:
    """Chains first, then what is left over, then nothing."""
    found = [alloc(machine) for _ in range(NR_FRAMES - 2)]
    assert 0 not in found
    assert len(set(found)) == len(found)
    assert machine.event(0, Event.ZONE_REFILL) == 4  # three chains, the rest
    assert alloc(machine) == 0
    assert machine.segment.system["zone_free"] == 0
    for address in found:
        machine.on(0, "put_page", address)
    assert machine.violations() == []


def test_lists_take_turns(machine: KernelMachine) -> None:
    """A full list becomes the spare one; only with two full ones does a chain go to the pool."""
    taken = [alloc(machine) for _ in range(NR_FRAMES - 2)]
    cpu = machine.segment.cpus[0]
    for number, address in enumerate(taken, 1):
        machine.on(0, "put_page", address)
        assert cpu["pcp_count"] == (number - 1) % PCP_BATCH + 1
        assert cpu["pcp_spare_count"] == (PCP_BATCH if number > PCP_BATCH else 0)
        chains = max(0, (number - 1) // PCP_BATCH - 1)
        assert machine.segment.system["zone_free"] == chains * PCP_BATCH
    assert machine.event(0, Event.ZONE_DRAIN) == 2
    assert machine.violations() == []


def test_freed_frame_is_reused_first(machine: KernelMachine) -> None:
    """The frame freed last is likely still in the CPU's cache."""
    address = alloc(machine)
    machine.on(0, "put_page", address)
    assert alloc(machine) == address


def test_spare_list_is_used_before_the_pool(machine: KernelMachine) -> None:
    taken = [alloc(machine) for _ in range(2 * PCP_BATCH)]
    for address in taken:
        machine.on(0, "put_page", address)
    refills = machine.event(0, Event.ZONE_REFILL)
    for _ in range(2 * PCP_BATCH):
        alloc(machine)
    assert machine.event(0, Event.ZONE_REFILL) == refills


def test_frames_freed_by_another_cpu_stay_there(machine: KernelMachine) -> None:
    taken = [alloc(machine) for _ in range(10)]
    for address in taken:
        machine.on(1, "put_page", address)
    assert machine.segment.cpus["pcp_count"].tolist() == [PCP_BATCH - 10, 10]
    assert machine.violations() == []


def test_frames_of_other_cpus_are_taken_when_the_pool_is_empty(machine: KernelMachine) -> None:
    taken = [alloc(machine) for _ in range(NR_FRAMES - 2)]
    for address in taken[: 2 * PCP_BATCH + 1]:
        machine.on(0, "put_page", address)
    assert [alloc(machine, 1) for _ in range(2 * PCP_BATCH + 2)].count(0) == 1
    assert machine.segment.cpus["pcp_count"].tolist() == [0, 0]


def test_zeroed_page(machine: KernelMachine) -> None:
    address = alloc(machine)
    frame = (machine.on(0, "page_address", address) - machine.segment.base) // 8
    machine.segment.words[frame : frame + 512] = 7
    machine.on(0, "put_page", address)
    assert machine.on(0, "alloc_zeroed_page", PageKind.TABLE) == address
    assert not machine.segment.words[frame : frame + 512].any()


def test_last_reference_frees(machine: KernelMachine) -> None:
    address = alloc(machine)
    machine.call("get_page", address)
    machine.on(0, "put_page", address)
    assert page(machine, address)["refcount"] == 1
    assert page(machine, address)["flags"] == PageKind.ANON
    machine.on(0, "put_page", address)
    assert page(machine, address)["refcount"] == 0
    assert page(machine, address)["flags"] == PageKind.FREE
    assert machine.violations() == []


def test_page_that_was_never_mapped(machine: KernelMachine) -> None:
    machine.on(0, "put_new_page", alloc(machine))
    assert machine.violations() == []


def test_one_reference_too_many_dropped() -> None:
    machine = KernelMachine(kernel_engine("plain"), nr_frames=NR_FRAMES)
    address = alloc(machine)
    machine.on(0, "put_page", address)
    with pytest.raises(KernelPanic) as caught:
        machine.on(0, "put_page", address)
    assert caught.value.code == Bug.REFCOUNT_UNDERFLOW
    machine.close()


def test_processes_share_the_pool() -> None:
    """Several CPUs allocate and free at random, for each other too; no frame is lost or doubled."""
    machine = KernelMachine(kernel_engine("native"), nr_cpus=3, nr_frames=1000)
    for seed in seeds(5):
        machine.reset(seed)
        with machine.workers() as workers:
            workers.start_gated({i: ("page_program", machine.cpu(i), 60_000) for i in range(3)})
            assert workers.join() == {0: 0, 1: 0, 2: 0}, f"seed {seed}"
        assert machine.total(Event.ZONE_DRAIN) > 0
        for i in range(3):
            machine.on(i, "page_program_end")
        assert machine.violations() == [], f"seed {seed}"
    machine.close()
