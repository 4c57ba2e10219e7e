# SPDX-License-Identifier: MIT
"""MMU notifiers: what subscribers read is never older than what the process reads."""

import functools
from importlib import import_module

import fork_ops
import notifier_ops
import pytest
from fork_ops import AREA, PAGES, Scratch, Wrong
from mm_machine import Machine, renamed, seeds
from protocol_sets import STORMED
from whole_kernel import MODULES, KernelMachine

from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link
from spfemu.events import Event
from spfemu.layout import PAGE_SIZE, WORD
from spfemu.mm.flags import Errno, Madv, Map, Mremap, Prot
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

RW = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
FORKER_CPU = 2
_OPS = functions_of(notifier_ops)
MUTANTS = {
    "": {},
    "tell nobody": renamed(
        _OPS,
        mmu_notifier_invalidate_range_start="mutant_tell_nobody",
        mmu_notifier_invalidate_range="mutant_tell_nobody",
        mmu_notifier_invalidate_range_end="mutant_tell_nobody",
    ),
}


@functools.cache
def engine(protocol: str, mutant: str = "") -> NativeEngine:
    modules = [functions_of(import_module("spfemu.mm." + module)) for module in MODULES]
    layers = [*modules, functions_of(fork_ops), _OPS, protocol_functions(protocol)]
    return NativeEngine(link([*layers, MUTANTS[mutant]], {}))


class NotifiedMachine(KernelMachine):
    """A machine with room for forks and a subscriber to its mm."""

    def __init__(self, protocol: str, mutant: str = "", nr_cpus: int = 1) -> None:
        geometry = Geometry(nr_cpus=nr_cpus, nr_frames=1500, nr_vmas=500, nr_spare_mms=8)
        Machine.__init__(self, engine(protocol, mutant), Segment.create(geometry))
        self.begin()

    def begin(self, seed: int = 1) -> None:
        self.reset(seed)
        assert self.on(0, "sys_mmap", AREA, PAGES * PAGE_SIZE, RW, FIXED) == AREA
        self.subscription = self.on(0, "mmu_notifier_register", self.segment.mm(0))
        assert self.subscription > 0

    def write(self, page: int, value: int) -> None:
        assert self.on(0, "user_write", AREA + page * PAGE_SIZE, value) == 0

    def secondary(self, page: int) -> tuple[int, int]:
        """What the subscriber reads."""
        return self.on(0, "notifier_read", self.subscription, AREA + page * PAGE_SIZE)


@pytest.fixture
def make():
    """Make machines that are closed at the end."""
    made = []

    def build(*arguments, **keywords):
        made.append(NotifiedMachine(*arguments, **keywords))
        return made[-1]

    yield build
    for machine in made:
        machine.close()


LENGTH = PAGES * PAGE_SIZE
ELSEWHERE = 1 << 41
CHANGES = {
    "munmap": (("sys_munmap", AREA, LENGTH), -Errno.EFAULT),
    "MADV_DONTNEED": (("sys_madvise", AREA, LENGTH, Madv.DONTNEED), 0),
    "mprotect": (("sys_mprotect", AREA, LENGTH, 0), -Errno.EFAULT),
    "mremap": (
        ("sys_mremap", AREA, LENGTH, LENGTH, Mremap.MAYMOVE | Mremap.FIXED, ELSEWHERE),
        -Errno.EFAULT,
    ),
    "MAP_FIXED": (("sys_mmap", AREA, LENGTH, RW, FIXED), 0),
}


@pytest.mark.parametrize("mutant", ["", "tell nobody"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_told(make, change, mutant):
    machine = make("classic", mutant)
    for page in range(PAGES):
        machine.write(page, page + 1)
        assert machine.secondary(page) == (0, page + 1)
    call, after = CHANGES[change]
    machine.on(0, *call)

    violations = machine.violations()
    if mutant:
        assert any("translates" in message for message in violations)
        assert machine.secondary(3) == (0, 4)
    else:
        assert violations == []
        assert machine.secondary(3) == (after, 0)
        assert machine.total(Event.MMU_NOTIFIER_INVALIDATE) >= 1


def test_a_fork_is_told_and_so_is_the_copy_that_follows(make):
    machine = make("classic")
    machine.write(0, 1)
    assert machine.secondary(0) == (0, 1)
    child = machine.on(0, "sys_fork")
    assert machine.total(Event.MMU_NOTIFIER_INVALIDATE) == 1
    assert machine.secondary(0) == (0, 1)
    machine.write(0, 2)
    assert machine.total(Event.MMU_NOTIFIER_INVALIDATE) == 2
    assert machine.secondary(0) == (0, 2)
    machine.on(0, "mmput", child)
    assert machine.violations() == []


def test_a_page_that_is_not_there_is_touched(make):
    machine = make("classic")
    assert machine.secondary(5) == (0, 0)
    assert machine.total(Event.ANON_ZERO_PAGE) == 1
    # the write replaces the zero page
    machine.write(5, 3)
    assert machine.secondary(5) == (0, 3)
    assert machine.violations() == []


def test_outside_of_mappings_there_is_nothing_to_read(make):
    machine = make("classic")
    assert machine.secondary(PAGES) == (-Errno.EFAULT, 0)


def test_several_subscribers_come_and_go_in_any_order(make):
    machine = make("classic")
    mm = machine.segment.mm(0)
    more = [machine.on(0, "mmu_notifier_register", mm) for _ in range(3)]
    assert all(subscription > 0 for subscription in more)
    assert machine.on(0, "mmu_notifier_register", mm) == -Errno.ENOMEM
    machine.write(0, 1)
    for subscription in more:
        assert machine.on(0, "notifier_read", subscription, AREA) == (0, 1)
    machine.on(0, "mmu_notifier_unregister", more[1])
    assert machine.on(0, "sys_madvise", AREA, PAGE_SIZE, Madv.DONTNEED) == 0
    assert machine.total(Event.MMU_NOTIFIER_INVALIDATE) == 3
    for subscription in (more[2], machine.subscription, more[0]):
        assert machine.on(0, "notifier_read", subscription, AREA) == (0, 0)
        machine.on(0, "mmu_notifier_unregister", subscription)
        assert machine.violations() == []
    assert machine.on(0, "mmu_notifier_register", mm) > 0


def test_an_mm_that_ends_lets_its_subscribers_go(make):
    machine = make("classic")
    machine.write(0, 1)
    child = machine.on(0, "sys_fork")
    subscription = machine.on(0, "mmu_notifier_register", child)
    parent = machine.segment.mm(0)
    machine.on(0, "switch_mm", child)
    assert machine.on(0, "notifier_read", subscription, AREA) == (0, 1)
    machine.on(0, "exit_mm", parent)
    assert machine.violations() == []
    machine.on(0, "mmu_notifier_unregister", subscription)
    assert machine.violations() == []
    assert int((machine.segment.notifiers["in_use"] != 0).sum()) == 1


# Processes


def run_readers(machine: NotifiedMachine, seed: int, rounds: int) -> list[str]:
    machine.begin(seed)
    with machine.workers() as workers:
        workers.start_gated(
            {
                0: ("fork_writer", machine.cpu(0)),
                1: ("notifier_keeper", machine.cpu(1), machine.subscription),
                FORKER_CPU: ("fork_forker", machine.cpu(FORKER_CPU), rounds),
                3: ("notifier_reader", machine.cpu(3)),
            }
        )
        workers.join()
    words = [
        machine.segment.word(machine.segment.scratch(offset // WORD))
        for offset in (Scratch.FAILED, Scratch.ADDRESS, Scratch.EXPECTED, Scratch.FOUND)
    ]
    violations = machine.violations()
    if words[0]:
        found = f"{Wrong(words[0]).name} at {words[1]:#x}: {words[3]} instead of {words[2]}"
        violations.insert(0, found)
    return violations


@pytest.mark.parametrize("protocol", STORMED)
def test_subscribers_read_while_threads_write_and_fork(make, protocol):
    machine = make(protocol, nr_cpus=4)
    for seed in seeds(1):
        assert run_readers(machine, seed, 40) == [], seed
        assert machine.total(Event.WP_COPY) > 40
        assert machine.total(Event.MMU_NOTIFIER_REGISTER) > 1
        assert machine.total(Event.MMU_NOTIFIER_FAULT) > 100


def test_subscribers_that_are_told_nothing_read_old_data(make):
    machine = make("spf", "tell nobody", nr_cpus=4)
    assert run_readers(machine, seeds(1)[0], 40) != []
