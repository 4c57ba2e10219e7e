# SPDX-License-Identifier: MIT
"""The n-th allocation fails, for every n that there is: nothing is lost, and all goes on.

After each failure the segment is checked at once.  A call that failed may have changed nothing that
the rest of its program sees, so the rest gives what it gives without that call.  When the program
has cleared up, everything is free that was, and the same program then runs as ever.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import fault_injection
import pytest
from failing_programs import OLD_BREAKS, PROGRAMS
from fault_injection import Inject
from mm_machine import Machine, renamed
from whole_kernel import MODULES, KernelMachine

from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link
from spfemu.kernel import kernel
from spfemu.layout import CPU, WORD
from spfemu.measure.build import protocols
from spfemu.mm.flags import Errno
from spfemu.mm.fork import dup_mmap, mm_alloc
from spfemu.primitives import load
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

ENOMEM, EAGAIN, EFAULT = -Errno.ENOMEM, -Errno.EAGAIN, -Errno.EFAULT
FAILS = {
    "sys_create": (-Errno.ENFILE,),
    "sys_open": (-Errno.ENFILE,),
    "sys_userfaultfd": (-Errno.EMFILE,),
    "sys_mlock": (ENOMEM, EAGAIN),
    "sys_madvise": (ENOMEM, EAGAIN),
    "sys_brk": OLD_BREAKS,
    "user_read": ((ENOMEM, 0), (EFAULT, 0)),
    "user_write": (ENOMEM, EFAULT),  # a stack that cannot grow
    "notifier_read": ((ENOMEM, 0),),
}
"""What a call may return for lack of memory, where that is not -ENOMEM only."""
COUNTS = ("bio_map_user", "get_user_pages_fast", "userfaultfd_copy")
"""Calls that may do a part and say how much."""
OBJECTS = (
    *("sys_fork", "sys_create", "sys_open", "sys_userfaultfd", "mmu_notifier_register"),
    *("mmu_notifier_unregister", "userfaultfd_release", "exit_mm", "switch_mm"),
)
"""Functions whose results are addresses of objects, which differ from run to run, or nothing."""
HOLD = ("bio_map_user", "get_user_pages_fast")
RELEASE = ("bio_release_pages", "put_user_page")
"""Functions between which frames are pinned, so that the segment is not at rest."""
MANY = 1 << 30
FAULTING = ("touches", "forks", "moves", "file_maps generic private")
"""Programs that have to do with what differs from protocol to protocol."""
CASES = [("spf", program) for program in PROGRAMS]
for _protocol in ("classic", "spf-vma", "vma-lock", "vma-refcount"):
    CASES += [(_protocol, program) for program in FAULTING]
if os.environ.get("SPFEMU_TEST_ALL"):
    # bare takes no notice of mappings
    CASES = [(p, program) for p in protocols() if p != "bare" for program in PROGRAMS]


@kernel
def mutant_dup_mm(cpu: int) -> int:
    """Leave a half-made child behind."""
    oldmm = load(cpu + CPU.mm)
    mm = mm_alloc(cpu, oldmm)
    if mm == 0:
        return ENOMEM
    error = dup_mmap(cpu, mm, oldmm)
    return error if error != 0 else mm


@kernel
def mutant_put_new_page(cpu: int, page: int) -> None:
    """Forget a page that could not be mapped."""


@functools.cache
def engine(protocol: str, mutant: str = "") -> NativeEngine:
    modules = [functions_of(import_module("spfemu.mm." + module)) for module in MODULES]
    layers = [*modules, protocol_functions(protocol)]
    if mutant:
        layers.append(renamed(functions_of(sys.modules[__name__]), **{mutant: "mutant_" + mutant}))
    return NativeEngine(link(layers, {}, (), [functions_of(fault_injection)]))


class FailingMachine(KernelMachine):
    """A machine on which allocations can be made to fail."""

    def __init__(self, protocol: str, mutant: str = "") -> None:
        geometry = Geometry(
            nr_frames=1200 + 2 * 512, nr_huge=2, nr_spare_mms=5, nr_swap=64, nr_vmas=120
        )
        Machine.__init__(self, engine(protocol, mutant), Segment.create(geometry))
        self.reset()

    def inject(self, countdown: int, times: int) -> None:
        """Let `times` allocations fail from number `countdown` on."""
        self.word_at(Inject.COUNTDOWN)[...] = countdown
        self.word_at(Inject.FAILED)[...] = 0
        self.word_at(Inject.TIMES)[...] = times

    def word_at(self, index: int) -> Any:
        at = (self.segment.scratch(index) - self.segment.base) // WORD
        return self.segment.words[at : at + 1]

    def free(self) -> dict[str, int]:
        """How many of everything are free."""
        segment = self.segment
        self.on(0, "rcu_barrier")
        cpu = segment.cpus[0]
        return {
            "frames": int(segment.system["zone_free"] + cpu["pcp_count"] + cpu["pcp_spare_count"]),
            "huge": int((segment.huge_pages["live"] == 0).sum()),
            "vmas": int((segment.vmas["slab_state"] == 0).sum()),
            "anon_vmas": int((segment.anon_vmas["in_use"] == 0).sum()),
            "chains": self.listed("avcs", "avc_free", "same_vma"),
            "mms": int((segment.mms["in_use"] == 0).sum()),
            "files": self.listed("files", "file_free", "next_free"),
            "mappings": self.listed("mappings", "mapping_free", "next_free"),
            "notifiers": int((segment.notifiers["in_use"] == 0).sum()),
            "uffds": self.listed("uffds", "uffd_free", "next_free"),
            "slots": int(segment.swap_clusters["nr_free"].sum()),
        }

    def listed(self, area: str, head: str, link: str) -> int:
        """Length of a list of free objects."""
        view, count = getattr(self.segment, area), 0
        address = int(self.segment.system[head])
        while address:
            count += 1
            index = (address - self.segment.address[area]) // view.dtype.itemsize
            address = int(view[link][index])
        return count


class Execution:
    """A run of a program: its results, and which call it was whose allocation failed."""

    def __init__(self, machine: FailingMachine, program: str, skip: tuple[int, Any] = (-1, 0)):
        self.machine = machine
        self.skip = skip
        self.buffer = machine.segment.scratch(0)
        self.calls: list[str] = []
        self.results: list[Any] = []
        self.failed = -1
        self.partly = False
        self.unchecked = ""
        self.pinned = False
        PROGRAMS[program](self)
        self.allocations = MANY - int(machine.word_at(Inject.COUNTDOWN)[0])
        machine.inject(0, 0)
        assert machine.on(0, "exec_mmap") == 0  # unmaps all

    def call(
        self, name: str, *arguments: int, partly: bool = False, may_differ: bool = False
    ) -> Any:
        index = len(self.calls)
        self.calls.append(name)
        if index == self.skip[0]:
            result = self.skip[1]
        else:
            result = self.machine.on(0, name, *arguments)
        plain = min(result, 1) if isinstance(result, int) and name in OBJECTS else result
        self.results.append(None if may_differ else plain)
        if name in HOLD or name in RELEASE:
            self.pinned = name in HOLD and result > 0
        if self.failed < 0 and self.machine.word_at(Inject.FAILED)[0]:
            self.failed, self.partly = index, partly
            self.unchecked = f"{name}{arguments}"
            self.machine.inject(0, 0)
        if self.unchecked and not self.pinned:
            assert self.machine.violations() == [], f"after {self.unchecked}"
            self.unchecked = ""
        return result

    def mm(self) -> int:
        return int(self.machine.segment.cpus["mm"][0])

    def word(self, address: int) -> int:
        return self.machine.segment.word(address)


class Injection:
    """All runs of one program under one protocol."""

    def __init__(self, machine: FailingMachine, program: str) -> None:
        self.machine = machine
        self.program = program
        self.without: dict[tuple[int, Any], list[Any]] = {}
        Execution(machine, program)
        self.free = machine.free()
        machine.inject(MANY, 1)
        self.reference = Execution(machine, program)
        self.allocations = self.reference.allocations
        assert self.machine.violations() == []
        assert machine.free() == self.free

    def fail(self, countdown: int, times: int) -> str:
        """Let allocations fail; returns the function that noticed, or nothing if none did.

        Whatever is wrong is an AssertionError.
        """
        self.machine.inject(countdown, times)
        run = Execution(self.machine, self.program)
        if run.failed < 0:
            return ""
        self.judge(run)
        assert self.machine.free() == self.free, "something leaks"
        again = Execution(self.machine, self.program)
        assert again.results == self.reference.results, "the program does not run well afterwards"
        return run.calls[run.failed]

    def judge(self, run: Execution) -> None:
        """Compare the results with those of a run in which nothing fails."""
        index = run.failed
        name, result = run.calls[index], run.results[index]
        assert run.results[:index] == self.reference.results[:index]
        if name in COUNTS or result == self.reference.results[index]:
            if not run.partly:
                assert run.results[index + 1 :] == self.reference.results[index + 1 :], name
            return
        assert result in FAILS.get(name, (ENOMEM,)), f"{name} returns {result}"
        if not run.partly:
            key = index, result
            if key not in self.without:
                self.without[key] = Execution(self.machine, self.program, key).results
            assert run.results == self.without[key], f"{name} failed, and yet did something"


@pytest.fixture
def make() -> Iterator[Callable[..., FailingMachine]]:
    """Return a function that makes machines of a protocol and a mutant."""
    made: list[FailingMachine] = []

    def make_machine(*kind: str) -> FailingMachine:
        made.append(FailingMachine(*kind))
        return made[-1]

    yield make_machine
    for machine in made:
        machine.close()


def fail_each(injection: Injection) -> None:
    """Let each allocation fail alone, then all from each on."""
    for times in (1, MANY):
        countdown = 1
        while injection.fail(countdown, times):
            countdown += 1
        assert countdown > injection.allocations


@pytest.mark.parametrize(("protocol", "program"), CASES)
def test_every_allocation_may_fail(make, protocol: str, program: str) -> None:
    injection = Injection(make(protocol), program)
    assert injection.allocations > 0
    fail_each(injection)


@pytest.mark.parametrize(
    ("mutant", "program", "symptom"),
    [("dup_mm", "forks", "something leaks"), ("put_new_page", "userfaults", "frame")],
)
def test_what_an_error_path_leaves_behind_is_seen(make, mutant, program, symptom) -> None:
    injection = Injection(make("classic", mutant), program)
    with pytest.raises(AssertionError, match=symptom):
        fail_each(injection)
