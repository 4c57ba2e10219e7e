# SPDX-License-Identifier: MIT
"""The software TLB, its flushes and IPIs, and the gather that frees only after them."""

from collections.abc import Iterator
from typing import Any

import pytest
from mm_machine import STUCK_SECONDS, WorkersError
from whole_kernel import KernelMachine, kernel_engine

from spfemu.engines.plain import KernelPanic
from spfemu.events import Event
from spfemu.layout import GATHER, PAGE, PAGE_SHIFT, PAGE_SIZE, TLB_ENTRIES, WORD
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Errno, Madv, Map, PageKind, Prot, Pte
from spfemu.mm.irq import TLB_GENERATION, TLB_TAG_LIMIT, CpuState

FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
READ_WRITE = int(Prot.READ | Prot.WRITE)
BASE = 0x1000_0000
PAGES = 4


@pytest.fixture(params=["native", "plain"])
def machine(request: pytest.FixtureRequest) -> Iterator[KernelMachine]:
    """Two CPUs of one mm with a few pages mapped, untouched."""
    made = KernelMachine(kernel_engine(request.param), nr_cpus=2)
    assert made.on(0, "sys_mmap", BASE, PAGES * PAGE_SIZE, READ_WRITE, FIXED) == BASE
    yield made
    made.close()


def entry(machine: KernelMachine, cpu: int, address: int) -> int:
    """The pte that a CPU's TLB has for an address, or 0."""
    vpn = address >> PAGE_SHIFT
    slot = vpn % TLB_ENTRIES
    tag, pte = machine.segment.cpus["tlb"][cpu].reshape(-1, 2)[slot]
    return int(pte) if tag == machine.segment.cpus["tlb_tag"][cpu] | vpn else 0


def delta(machine: KernelMachine, cpu: int, event: Event, *call: Any) -> int:
    """By how much running a kernel function on a CPU increases a count."""
    before = machine.event(cpu, event)
    machine.on(cpu, *call)
    return machine.event(cpu, event) - before


def test_translation_is_cached(machine: KernelMachine) -> None:
    assert delta(machine, 0, Event.TLB_MISS, "user_write", BASE, 1) == 1
    assert delta(machine, 0, Event.TLB_MISS, "user_write", BASE + 8, 2) == 0
    assert delta(machine, 0, Event.TLB_MISS, "user_read", BASE) == 0
    assert entry(machine, 0, BASE) & Pte.RW
    assert entry(machine, 1, BASE) == 0


def test_cached_read_only_translation_does_not_allow_writing(machine: KernelMachine) -> None:
    machine.on(0, "user_read", BASE)
    assert entry(machine, 0, BASE) & Pte.SPECIAL
    assert delta(machine, 0, Event.TLB_MISS, "user_write", BASE, 1) == 1
    assert machine.on(0, "user_read", BASE) == (0, 1)


def test_pages_that_share_a_slot_evict_each_other(machine: KernelMachine) -> None:
    other = BASE + TLB_ENTRIES * PAGE_SIZE
    machine.on(0, "sys_mmap", other, PAGE_SIZE, READ_WRITE, FIXED)
    machine.on(0, "user_write", BASE, 1)
    machine.on(0, "user_write", other, 2)
    assert entry(machine, 0, BASE) == 0
    assert machine.on(0, "user_read", BASE) == (0, 1)
    assert machine.on(0, "user_read", other) == (0, 2)


def test_accessed_and_dirty_are_set_by_the_walk(machine: KernelMachine) -> None:
    """As the hardware does: by a miss, not by a hit."""
    machine.on(0, "user_write", BASE, 1)
    pte = machine.on(0, "hardware_walk_pte", BASE)
    bits = int(Pte.ACCESSED | Pte.DIRTY)
    machine.segment.words[(pte - machine.segment.base) // WORD] &= ~bits
    machine.on(0, "local_flush_tlb")
    machine.on(0, "user_read", BASE)
    assert machine.segment.word(pte) & bits == Pte.ACCESSED
    machine.on(0, "user_write", BASE, 1)
    assert machine.segment.word(pte) & bits == bits


def test_addresses_beyond_user_space(machine: KernelMachine) -> None:
    for address in (1 << 47, -8, 1 << 62):
        assert machine.on(0, "user_read", address)[0] == -Errno.EFAULT
        assert machine.on(0, "user_write", address, 1) == -Errno.EFAULT
    assert machine.event(0, Event.PGFAULT) == 0


def test_flush_forgets_everything_on_this_cpu(machine: KernelMachine) -> None:
    for page in range(PAGES):
        machine.on(0, "user_write", BASE + page * PAGE_SIZE, page)
    machine.on(0, "local_flush_tlb")
    assert not any(entry(machine, 0, BASE + page * PAGE_SIZE) for page in range(PAGES))
    assert delta(machine, 0, Event.TLB_MISS, "user_read", BASE) == 1


def test_generations_wrap_around(machine: KernelMachine) -> None:
    """When tags run out they begin again, and no old translation comes back."""
    machine.on(0, "user_write", BASE, 1)
    first = machine.segment.cpus["tlb_tag"][0]
    assert first == TLB_GENERATION
    machine.segment.cpus["tlb_tag"][0] = TLB_TAG_LIMIT - TLB_GENERATION
    machine.on(0, "local_flush_tlb")
    assert machine.segment.cpus["tlb_tag"][0] == TLB_GENERATION
    assert entry(machine, 0, BASE) == 0


@pytest.mark.parametrize(
    "call",
    [
        ("sys_munmap", BASE, PAGES * PAGE_SIZE),
        ("sys_mprotect", BASE, PAGES * PAGE_SIZE, Prot.READ),
        ("sys_madvise", BASE, PAGES * PAGE_SIZE, Madv.DONTNEED),
    ],
    ids=lambda call: call[0],
)
def test_idle_cpu_flushes_when_it_goes_on(machine: KernelMachine, call: tuple[Any, ...]) -> None:
    """It is not sent an IPI, and does not use what it had cached."""
    machine.on(1, "user_write", BASE, 1)
    machine.on(0, *call)
    assert machine.event(0, Event.TLB_SHOOTDOWN_SENT) == 0
    assert entry(machine, 1, BASE) != 0
    machine.on(1, "cond_resched")
    assert entry(machine, 1, BASE) == 0
    assert machine.segment.cpus["tlb_gen"][1] == machine.mm["tlb_gen"]
    assert delta(machine, 1, Event.TLB_FLUSH, "cond_resched") == 0


def test_what_maps_nothing_flushes_nothing(machine: KernelMachine) -> None:
    assert delta(machine, 0, Event.TLB_FLUSH, "sys_munmap", BASE, PAGE_SIZE) == 0
    assert (
        delta(machine, 0, Event.TLB_FLUSH, "sys_mprotect", BASE + PAGE_SIZE, PAGE_SIZE, Prot.READ)
        == 0
    )


# Running CPUs: IPIs


@pytest.fixture
def native() -> Iterator[KernelMachine]:
    """Two native CPUs, the second of which is used as a process."""
    made = KernelMachine(kernel_engine("native"), nr_cpus=2)
    assert made.on(0, "sys_mmap", BASE, PAGES * PAGE_SIZE, READ_WRITE, FIXED) == BASE
    yield made
    made.close()


def running(machine: KernelMachine, cpu: int) -> bool:
    return bool(machine.segment.cpus["state"][cpu] == CpuState.RUNNING)


def stop(machine: KernelMachine) -> None:
    machine.segment.system["stop"] = 1


def test_running_cpu_serves_the_shootdown(native: KernelMachine) -> None:
    """Munmap returns only when the other CPU has flushed; that one is not asked again on wake."""
    with native.workers() as workers:
        workers.start(1, "tlb_read_until_fault", native.cpu(1), BASE)
        workers.wait_until(lambda: entry(native, 1, BASE))
        assert native.on(0, "sys_munmap", BASE, PAGES * PAGE_SIZE) == 0
        assert entry(native, 1, BASE) == 0, "munmap returned before the TLB was flushed"
        assert workers.join() == {1: -Errno.EFAULT}
    assert native.event(0, Event.TLB_SHOOTDOWN_SENT) == 1
    assert native.event(1, Event.TLB_SHOOTDOWN_RECEIVED) == 1
    assert delta(native, 1, Event.TLB_FLUSH, "cond_resched") == 0
    assert native.violations() == []


def test_cpu_of_another_mm_is_left_alone(native: KernelMachine) -> None:
    native.mm["cpumask"][0] = 1
    with native.workers() as workers:
        workers.start(1, "tlb_poll_until_stop", native.cpu(1))
        workers.wait_until(lambda: running(native, 1))
        native.on(0, "user_write", BASE, 1)
        assert native.on(0, "sys_munmap", BASE, PAGES * PAGE_SIZE) == 0
        stop(native)
        workers.join()
    assert native.event(1, Event.TLB_SHOOTDOWN_RECEIVED) == 0


def test_interrupts_off_hold_off_the_shootdown(native: KernelMachine) -> None:
    """The unmapper waits as long as the walker has interrupts off, and no longer."""
    with native.workers() as workers:
        workers.start(1, "tlb_irqs_off_until_stop", native.cpu(1))
        workers.wait_until(lambda: native.segment.cpus["irqs_disabled"][1])
        native.on(0, "user_write", BASE, 1)
        free = int(native.segment.cpus["pcp_count"][0])
        workers.start(0, "sys_munmap", native.cpu(0), BASE, PAGES * PAGE_SIZE)
        workers.wait_until(lambda: native.segment.cpus["ipi_request"][1])
        assert not workers.finished(0)
        assert native.segment.cpus["ipi_done"][1] == 0
        assert native.segment.cpus["pcp_count"][0] == free
        stop(native)
        assert workers.join() == {0: 0, 1: 0}
    assert native.event(1, Event.TLB_SHOOTDOWN_RECEIVED) == 1
    assert native.violations() == []


def test_two_cpus_shoot_each_other_down(native: KernelMachine) -> None:
    """Who waits for an IPI to be served serves its own."""
    with native.workers() as workers:
        workers.start_gated({i: ("tlb_flush_often", native.cpu(i), 2000) for i in range(2)})
        assert workers.join() == {0: 0, 1: 0}
    assert native.mm["tlb_gen"] == 4000
    assert native.total(Event.TLB_SHOOTDOWN_RECEIVED) <= native.total(Event.TLB_SHOOTDOWN_SENT)
    assert native.violations() == []


def test_waiter_that_serves_nothing_would_be_stuck(native: KernelMachine) -> None:
    """The same with interrupts off at both: the watchdog of these tests sees it."""
    with native.workers(STUCK_SECONDS) as workers:
        workers.start_gated({i: ("tlb_flush_irqs_off", native.cpu(i)) for i in range(2)})
        with pytest.raises(WorkersError, match="stuck"):
            workers.join()


# The gather


def test_gather_frees_after_the_flush(machine: KernelMachine) -> None:
    """What is collected is neither free nor reusable before, and is afterwards."""
    page = machine.on(0, "alloc_page", PageKind.ANON)
    machine.on(0, "tlb_gather_mmu", machine.segment.mm(0))
    machine.on(0, "tlb_remove_page", page)
    machine.on(0, "tlb_remove_table", _table(machine))
    gather = machine.segment.cpus["gather"][0]
    assert gather[GATHER.nr_pages // WORD] == 1
    assert gather[GATHER.nr_tables // WORD] == 1
    count = int(machine.segment.cpus["pcp_count"][0])
    flushes = machine.event(0, Event.TLB_FLUSH)
    machine.on(0, "tlb_finish_mmu")
    assert machine.event(0, Event.TLB_FLUSH) == flushes + 1
    assert machine.segment.cpus["pcp_count"][0] == count + 1  # the table waits for a grace period
    assert not gather.any()
    assert machine.violations() == []
    assert machine.segment.cpus["pcp_count"][0] == count + 2


def _table(machine: KernelMachine) -> int:
    """A page table that is linked nowhere, counted as one of the mm's."""
    table = machine.on(0, "alloc_page", PageKind.TABLE)
    index = (table - machine.segment.address["vmemmap"]) // PAGE.SIZE
    machine.segment.pages["private"][index] = machine.segment.mm(0)
    machine.mm["pgtables"] += 1
    return table


def test_tables_are_freed_at_once_without_rcu() -> None:
    machine = KernelMachine(kernel_engine("native", "classic", "irq"))
    machine.on(0, "tlb_gather_mmu", machine.segment.mm(0))
    machine.on(0, "tlb_remove_table", _table(machine))
    count = int(machine.segment.cpus["pcp_count"][0])
    machine.on(0, "tlb_finish_mmu")
    assert machine.segment.cpus["pcp_count"][0] == count + 1
    assert machine.violations() == []
    machine.close()


def test_gathers_do_not_nest() -> None:
    machine = KernelMachine(kernel_engine("plain"))
    machine.on(0, "tlb_gather_mmu", machine.segment.mm(0))
    with pytest.raises(KernelPanic) as caught:
        machine.on(0, "tlb_gather_mmu", machine.segment.mm(0))
    assert caught.value.code == Bug.GATHER_NESTED
    machine.close()
