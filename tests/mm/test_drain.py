# SPDX-License-Identifier: MIT
"""What CPUs keep for themselves is found by who needs it, whatever they are doing meanwhile.

CPU 0 (A) allocates; all free frames are on the lists of CPU 1 (B), or wait there for a grace
period.
"""

import functools
import sys

import pytest
from mm_machine import Layer, renamed
from whole_kernel import MODULES, import_module

from spfemu.checks import check_segment
from spfemu.engines.script import Script, ScriptError, after, before, waits
from spfemu.engines.source import functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.mm.drain import drain_lists
from spfemu.mm.flags import PageKind
from spfemu.mm.irq import CpuState
from spfemu.mm.page_alloc import alloc_page, put_page
from spfemu.mm.rcu import call_rcu
from spfemu.mm.sched import cond_resched, cpu_idle_enter, cpu_idle_exit, cpu_sleep
from spfemu.mm.vma import vm_area_alloc, vm_area_free
from spfemu.primitives import cmpxchg_acquire, load, smp_store_release
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

FRAMES = 200
KEPT = 80
"""Frames that CPU 1 keeps: a full list and a part of another."""


@kernel
def thread_alloc(cpu: int) -> int:
    cpu_idle_exit(cpu)
    page = alloc_page(cpu, PageKind.ANON)
    cpu_idle_enter(cpu)
    return page


@kernel
def thread_vma(cpu: int) -> int:
    cpu_idle_exit(cpu)
    vma = vm_area_alloc(cpu, load(cpu + CPU.mm))
    cpu_idle_enter(cpu)
    return vma


@kernel
def thread_free_vma(cpu: int, vma: int) -> int:
    """Free a VMA, which others may still see, and do nothing for long."""
    cpu_idle_exit(cpu)
    vm_area_free(cpu, vma)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_operations(cpu: int, count: int) -> int:
    """Pass points between operations."""
    cpu_idle_exit(cpu)
    for _ in range(count):
        cond_resched(cpu)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_put(cpu: int, page: int) -> int:
    cpu_idle_exit(cpu)
    put_page(cpu, page)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_put_later(cpu: int, page: int) -> int:
    """Drop the last reference to a frame after a grace period."""
    cpu_idle_exit(cpu)
    call_rcu(cpu, page)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_sleep(cpu: int) -> int:
    """Sleep for a moment."""
    cpu_idle_exit(cpu)
    cpu_sleep(cpu, cpu + CPU.waiter, 0, 1_000_000)
    cond_resched(cpu)
    cpu_idle_enter(cpu)
    return 0


@kernel
def mutant_forget_who_was_drained(cpu: int, target: int, seq: int) -> None:
    """Drain an idle CPU without noting that it has been: it gives its lists away once more."""
    if cmpxchg_acquire(target + CPU.state, CpuState.IDLE, CpuState.FROZEN) == CpuState.IDLE:
        drain_lists(cpu, target)
        smp_store_release(target + CPU.state, CpuState.IDLE)


@kernel
def mutant_freeze_nobody(cpu: int, target: int, seq: int) -> None:
    """Work on the lists of an idle CPU that may go on meanwhile."""
    drain_lists(cpu, target)


LAYER = functions_of(sys.modules[__name__])


@functools.cache
def engine_with(mutant: str = "") -> StepEngine:
    modules = [import_module("spfemu.mm." + name) for name in MODULES]
    layers: list[Layer] = [*map(functions_of, modules), protocol_functions("classic"), LAYER]
    if mutant:
        layers.append(renamed(LAYER, drain_cpu=mutant))
    return StepEngine(link(layers, {"CONFIG_DEBUG_VM": 1}))


class Drained:
    """Three CPUs; CPU 2 prepares things."""

    def __init__(self, mutant: str = "", **geometry: int) -> None:
        self.engine = engine_with(mutant)
        self.segment = Segment.create(Geometry(nr_cpus=3, nr_frames=FRAMES, **geometry))
        self.segment.mms["mm_users"] = 3
        self.taken: list[int] = []
        for cpu in range(3):
            self.engine.call("cpu_idle_enter", self.cpu(cpu))

    def cpu(self, index: int) -> int:
        return self.segment.cpu(index)

    def call(self, name: str, *arguments: int, cpu: int = 2) -> int:
        result = self.engine.call("thread_" + name, self.cpu(cpu), *arguments)
        assert isinstance(result, int)
        return result

    def leaves(self, kept: int, name: str = "put") -> None:
        """Use up all frames but some that CPU 1 frees."""
        while page := self.call("alloc"):
            self.taken.append(page)
        for _ in range(kept):
            self.call(name, self.taken.pop(), cpu=1)

    def violations(self) -> list[str]:
        for page in self.taken:
            self.call("put", page)
        for cpu in range(3):
            self.engine.call("cpu_idle_exit", self.cpu(cpu))
            self.engine.call("rcu_barrier", self.cpu(cpu))
            self.engine.call("cpu_idle_enter", self.cpu(cpu))
        return check_segment(self.segment)


@pytest.fixture
def drained(own_cache):
    made = Drained()
    yield made
    assert made.violations() == []
    made.segment.close()


@pytest.mark.parametrize("name", ["put", "put_later"])
def test_an_idle_cpu_keeps_nothing(drained, name):
    drained.leaves(KEPT, name)
    found = [drained.call("alloc", cpu=0) for _ in range(KEPT)]
    assert 0 not in found
    assert drained.call("alloc", cpu=0) == 0
    drained.taken += found


@pytest.mark.parametrize("name", ["put", "put_later"])
def test_a_running_cpu_gives_away_what_it_has_between_operations(drained, name):
    drained.leaves(KEPT, name)
    with Script(drained.engine, drained.segment) as script:
        b = script.cpu("B", "thread_operations", drained.cpu(1), 50)
        a = script.cpu("A", "thread_alloc", drained.cpu(0))
        b.runs_until(before("cond_resched"))
        with pytest.raises(ScriptError, match="waits without"):
            a.runs_to_end()
        drained.taken.append(a.runs_to_end(letting=[b]))
        assert b.runs_to_end() == 0
    assert 0 not in drained.taken


def test_who_goes_on_waits_for_who_works_on_its_lists(drained):
    drained.leaves(KEPT)
    with Script(drained.engine, drained.segment) as script:
        a = script.cpu("A", "thread_alloc", drained.cpu(0))
        b = script.cpu("B", "thread_alloc", drained.cpu(1))
        a.runs_until(before("drain_pages"))
        b.runs_until(waits())
        assert drained.segment.cpus["state"][1] == CpuState.FROZEN
        for thread in (b, a):
            drained.taken.append(thread.runs_to_end(letting=[a, b]))
    assert 0 not in drained.taken
    assert len(set(drained.taken)) == len(drained.taken)


def test_one_drains_after_the_other(drained):
    """The second one finds what the first has collected and not used."""
    drained.leaves(2)
    with Script(drained.engine, drained.segment) as script:
        a = script.cpu("A", "thread_alloc", drained.cpu(0))
        c = script.cpu("C", "thread_alloc", drained.cpu(2))
        c.runs_until(before("drain_all_pages"))
        a.runs_until(after("drain_cpu"))
        c.runs_until(waits())
        for thread in (a, c):
            drained.taken.append(thread.runs_to_end(letting=[a, c]))
    assert 0 not in drained.taken


def late_callback(mutant=""):
    """B frees something while A has just drained it, and goes on later; returns the violations."""
    drained = Drained(mutant)
    drained.leaves(1)
    with Script(drained.engine, drained.segment) as script:
        a = script.cpu("A", "thread_alloc", drained.cpu(0))
        b = script.cpu("B", "thread_put_later", drained.cpu(1), drained.taken.pop())
        d = script.cpu("C", "thread_operations", drained.cpu(1), 4)
        drained.taken.append(a.runs_to_end())
        b.runs_to_end()
        d.runs_to_end()
    found = drained.violations()
    drained.segment.close()
    return found


def test_a_cpu_is_drained_once(own_cache):
    assert late_callback() == []


def test_one_that_is_drained_twice_loses_what_it_frees_in_between(own_cache):
    assert any(
        "wait for a grace period on no CPU" in v
        for v in late_callback("mutant_forget_who_was_drained")
    )


def beside_an_idle_cpu(mutant=""):
    """A drains B, which is idle at first and frees a frame meanwhile; returns the violations."""
    drained = Drained(mutant)
    drained.leaves(3)
    with Script(drained.engine, drained.segment) as script:
        a = script.cpu("A", "thread_alloc", drained.cpu(0))
        b = script.cpu("B", "thread_put", drained.cpu(1), drained.taken.pop())
        a.runs_until(before("spin_lock", inside="drain_pages"))
        b.runs_until(waits() if not mutant else after("put_page"), letting=[])
        drained.taken.append(a.runs_to_end(letting=[b]))
        b.runs_to_end()
    found = drained.violations()
    drained.segment.close()
    return found


def test_an_idle_cpu_is_frozen(own_cache):
    assert beside_an_idle_cpu() == []


def test_one_that_is_not_frozen_loses_a_frame(own_cache):
    assert any("frame" in v for v in beside_an_idle_cpu("mutant_freeze_nobody"))


def test_vmas_that_wait_for_a_grace_period_are_found(own_cache):
    drained = Drained(nr_vmas=8)
    vmas = [drained.call("vma", cpu=0) for _ in range(8)]
    assert 0 not in vmas
    assert drained.call("vma", cpu=0) == 0
    for vma in vmas:
        drained.call("free_vma", vma, cpu=1)
    assert drained.call("vma", cpu=0) in vmas
    drained.segment.close()


@pytest.mark.parametrize("seed", range(20))
def test_all_frames_are_found_in_random_orders(own_cache, seed):
    drained = Drained()
    drained.leaves(3)
    with Script(drained.engine, drained.segment) as script:
        threads = [
            script.cpu("A", "thread_alloc", drained.cpu(0)),
            script.cpu("B", "thread_sleep", drained.cpu(1)),
            script.cpu("C", "thread_alloc", drained.cpu(2)),
        ]
        schedule = script.runs_randomly(seed)
        found = [threads[0].result, threads[2].result]
    assert 0 not in found, (seed, schedule)
    drained.taken += found
    assert drained.violations() == [], (seed, schedule)
    drained.segment.close()
