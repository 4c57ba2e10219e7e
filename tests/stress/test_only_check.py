# SPDX-License-Identifier: MIT
"""Each check of the hunt is worth its place: there is a mutant that only it catches.

A case is a play of a few steps on a broken kernel, made with all checks, of which this one must
report and no other, and without it, when nothing may; on a sound kernel nothing may at all.  Where
a race is needed, but for one case, it is enough to stop a CPU at a call: the engine `plain` plays.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from watched import Watched

import spfemu.checks
from spfemu.engines.compiler import Compiler
from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.script import Script, waits
from spfemu.engines.stepped import FiberState, StepEngine
from spfemu.engines.steps import HOOKS, STEP_KINDS, Step
from spfemu.layout import WORD
from spfemu.measure import build
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Errno, Madv, Prot
from spfemu.mm.irq import CpuState
from spfemu.mm.userfaultfd_register import UffdMode
from spfemu.segment import Geometry, Segment
from spfemu.stress.mix.model import UNITS, Area, AreaWord, UnitWord, Wrong, model_words
from spfemu.stress.mutant import mutants
from spfemu.stress.promises import Promise
from spfemu.stress.schedules import schedules
from spfemu.stress.schedules.process import Process, program
from spfemu.stress.schedules.schedule import PROCESS, BrokenError, Schedule, expect
from spfemu.stress.watchdog import StuckError
from spfemu.workloads.parameters import STRESS, Param

AREA = 1 << 40
PAGE = AREA + 4096
LENGTH = 16 << 12
RW = int(Prot.READ | Prot.WRITE)
DONTNEED = int(Madv.DONTNEED)
EFAULT, EINTR = int(Errno.EFAULT), int(Errno.EINTR)

# The checks, as the code has them


def short(module):
    return module.__name__.rpartition(".")[2]


ORACLES = {short(m): m for m in build.oracles() if hasattr(m, "stress_violation")}
"""Those that report something; others take notes for them, delay or yield."""
OF_ORACLES = {promise: promise.name.lower() for promise in Promise}
OF_ORACLES[Promise.USE_AFTER_FREE] = "kasan"
CHECKERS = [
    importlib.import_module(f"spfemu.checks.{m.name}")
    for m in pkgutil.iter_modules(spfemu.checks.__path__)
]
AT_REST = {
    name
    for module in CHECKERS
    for name, value in vars(module).items()
    if name.startswith("check_") and getattr(value, "__module__", "") == module.__name__
}
WATCHDOG = "watchdog"
ACCESSES = {
    name
    for name, kind in STEP_KINDS.items()
    if kind in (Step.LOAD, Step.STORE, Step.RMW, Step.PAGE)
}
"""Primitives that touch memory, at their first argument."""


def all_checks():
    return {*ORACLES, *(wrong.name for wrong in Wrong), *AT_REST, WATCHDOG}


class Reports:
    """Which checks at rest report something, each for itself; `without` is not listened to."""

    def __init__(self, patch, without):
        self.names = set()
        self.inner = [0]
        for module in [spfemu.checks, *CHECKERS]:
            for name in AT_REST & set(vars(module)):
                patch.setattr(module, name, self.listen(name, getattr(module, name), without))

    def listen(self, name, check, without):
        """Wrap a check, so that what it reports, but not what checks inside of it do, is known."""

        @functools.wraps(check)
        def call(state, *arguments):
            messages = state.findings.messages
            before = len(messages)
            self.inner.append(0)
            result = check(state, *arguments)
            own = len(messages) - before - self.inner.pop()
            if own and name == without:
                assert before + own == len(messages), f"{name} is not the last to report"
                del messages[before:]
            elif own:
                self.names.add(name)
            self.inner[-1] += len(messages) - before
            return result

        return call


class WrongError(Exception):
    """The mix says what is wrong."""


# Playing


@dataclass(frozen=True)
class Case:
    """A mutant and how it is played.

    `seen` takes the overrides to play with and, if it is taken away, a check; it returns the checks
    that report something.
    """

    mutant: str
    seen: Callable[..., set[str]]


def oracles_but(without):
    return [module for name, module in ORACLES.items() if name != without]


def judged(play, segment, without):
    """Play, then check what is left; returns the checks that have reported something."""
    with pytest.MonkeyPatch.context() as patch:
        reports = Reports(patch, without)
        try:
            play()
        except KernelPanic as panic:
            if panic.code != Bug.PROMISE_BROKEN:
                return {f"assertion {Bug(panic.code).name}"}
            return {OF_ORACLES[Promise(int(segment.stress[0]["kind"]))]}
        except BrokenError as broken:
            return {f"result: {broken}"}
        except WrongError as wrong:
            return {str(wrong)}
        spfemu.checks.check_segment(segment)
        return reports.names


def plain(linked):
    """Engine `plain`, which calls no hooks by itself, with that of accesses if an oracle has it."""
    engine = PlainEngine(linked)
    compiler = Compiler(linked, stepped=False, triple="")
    if "trace_access" in compiler.hooks:
        for name in engine.functions.keys() - compiler.noinstr:
            namespace = engine.functions[name].__globals__
            for primitive in ACCESSES & set(linked.functions[name].primitives):
                namespace[primitive] = told(namespace[primitive], engine.functions["trace_access"])
    return engine


def told(primitive, hook):
    """Wrap a primitive so that the hook is told of it."""

    def call(address, *rest):
        hook(0, address)
        return primitive(address, *rest)

    return call


@contextlib.contextmanager
def segment_of(geometry):
    segment = Segment.create(replace(geometry, stress=1))
    try:
        yield segment
    finally:
        segment.close()


def played(play, name, overrides, without=None):
    """Play with a process, on the engine `plain`: a schedule of one CPU, or a function."""
    mutant = mutants()[name]
    one = play if isinstance(play, Schedule) else Schedule("", play, False, PROCESS, Process)
    config = {**one.config, **mutant.config}
    linked = program(mutant.protocol, overrides, None, None, oracles_but(without), **config)
    with segment_of(one.geometry) as segment:
        process = one.process(plain(linked), segment)
        return judged(lambda: one.play(process, 1), segment, without)


def schedule_of(name):
    """A case of a mutant that its own schedule shows."""
    return Case(name, functools.partial(played, schedules()[mutants()[name].schedule], name))


def play_of(name, play):
    return Case(name, functools.partial(played, play, name))


@contextlib.contextmanager
def stopped_in(process, function, callee, meanwhile):
    """Let something happen once, when `function` has called `callee`, as it has to."""
    engine = process.engine
    while inner := engine.program.functions[function].inner:
        function = inner
    namespace = engine.functions[function].__globals__
    original = namespace[callee]

    def call(*arguments):
        namespace[callee] = original
        result = original(*arguments)
        cpu = namespace["this_cpu"]()
        meanwhile()
        engine.call("irq_poll", cpu)  # what comes next is this CPU's again
        return result

    namespace[callee] = call
    yield
    assert namespace[callee] is original, f"{function} has not called {callee}"


def copy_beside_a_split(process, _seed):
    """A fault has copied the start of its VMA, but not the offset, when that is cut."""
    process.map(AREA, 16)
    process.write(PAGE, 1)
    call = ("mprotect", AREA + LENGTH // 2, LENGTH // 2, RW | int(Prot.EXEC))
    with stopped_in(process, "copy_pvma", "load", lambda: process.call(*call, cpu=1)):
        expect("the write", process.call("write", AREA + (10 << 12), 7, cpu=0), 0)
    process.call("munmap", AREA, LENGTH)


def gate_beside_mprotect(process, _seed):
    """A fault is about to take the page-table lock when the right to write is taken away."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    call = ("mprotect", PAGE, 4096, int(Prot.READ))
    gate = "pte_map_lock_speculative"
    with stopped_in(process, gate, "pte_lockptr", lambda: process.call(*call, cpu=1)):
        expect("the write", process.call("write", PAGE, 7, cpu=0), 0, -EFAULT)
    process.call("munmap", AREA, LENGTH)


def two_killed_writers(process, _seed):
    """Two faults, one after the other, have the lock when the wait of a writer for it is killed."""
    addresses = AREA, 2 * AREA  # without page tables, so no fault there is speculative
    for address in addresses:
        process.map(address, 4)
    process.call("kill", process.segment.cpu(1))

    def killed():
        expect("the killed call", process.call("munmap", AREA, 4096, cpu=1), -EINTR)

    for address in addresses:
        with stopped_in(process, "fault_under_mmap_lock", "handle_mm_fault", killed):
            expect("the write", process.call("write", address, 7, cpu=0), 0)
    process.segment.cpus["fatal_signal"][1] = 0


def copy_beside_munmap(process, _seed):
    """A fault is copying its VMA when that is unmapped and freed; it will find that out itself."""
    process.map(AREA, 16)
    call = ("munmap", AREA, LENGTH)
    with stopped_in(process, "copy_pvma", "load", lambda: process.call(*call, cpu=1)):
        expect("the write", process.call("write", PAGE, 7, cpu=0), -EFAULT)


def write_and_protect(process, _seed):
    """A page is written, and then may only be read."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    expect("the mprotect", process.call("mprotect", AREA, 4096, int(Prot.READ)), 0)


# The stress mix


class Mix:
    """The mix's own functions on one CPU, one after another."""

    def __init__(self, engine, segment):
        self.engine, self.segment = engine, segment
        self.cpu = segment.cpu(0)
        segment.mms["mm_users"] = segment.geometry.nr_cpus
        for index in range(segment.geometry.nr_cpus):
            engine.call("cpu_online", segment.cpu(index))
            engine.call("cpu_idle_enter", segment.cpu(index))
        engine.call("cpu_idle_exit", self.cpu)
        segment.words[(self.cpu + Param.LEADER - segment.base) // WORD] = self.cpu
        assert engine.call("workload_setup", self.cpu) == 0

    def does(self, name, *arguments):
        """Do a call that gives 0 or what is wrong."""
        result = self.engine.call(name, self.cpu, *arguments)
        if result < 0:
            raise WrongError(Wrong(-result).name)

    def gives(self, rights, name, *arguments):
        """Do a call that draws the rights of units until it draws these."""
        first = arguments[:2]
        for _ in range(200):
            self.does(name, *arguments)
            if self.engine.call("unit_rights", self.cpu, *first) == rights:
                return
        raise AssertionError(f"{name} never gives {rights}")

    def maps(self, area=Area.ANON):
        self.gives(RW, "owned_mmap", area, 0, UNITS)

    def races(self, name, unit, area=Area.ANON):
        """Do a racing access; no call overlaps."""
        version = self.engine.call("model_area", self.cpu, area) + AreaWord.VERSION
        self.does(name, area, unit, self.segment.word(version))

    def ends(self):
        """Leave nothing mapped."""
        self.does("owned_munmap", Area.ANON, 0, UNITS)
        self.engine.call("cpu_idle_enter", self.cpu)


def a_right_is_gone(mix, rights, access):
    mix.maps()
    mix.does("owned_write", Area.ANON, 0)
    mix.gives(rights, "owned_mprotect", Area.ANON, 0, UNITS)
    access(mix)


def reads_what_is_gone(mix):
    a_right_is_gone(mix, 0, lambda mix: mix.does("owned_read", Area.ANON, 0))


def writes_what_is_gone(mix):
    a_right_is_gone(mix, int(Prot.READ), lambda mix: mix.does("owned_write", Area.ANON, 0))


def races_for_what_is_gone(mix):
    a_right_is_gone(mix, int(Prot.READ), lambda mix: mix.races("racing_write", 0))


def old_value(mix):
    """The frame of a dropped page comes back with its first word."""
    mix.maps()
    mix.does("owned_write", Area.ANON, 0)
    mix.does("owned_dontneed", Area.ANON, 0, 1, DONTNEED)
    mix.races("racing_write", 0)
    mix.does("owned_read", Area.ANON, 0)


def old_racing_value(mix):
    """The frame of a dropped page comes to another unit with this CPU's word."""
    mix.maps()
    mix.races("racing_write", 1)
    mix.does("owned_dontneed", Area.ANON, 1, 2, DONTNEED)
    mix.does("owned_write", Area.ANON, 0)
    mix.races("racing_read", 0)


def neighbour_is_dropped(mix):
    mix.maps()
    mix.races("racing_write", 1)
    mix.does("owned_dontneed", Area.ANON, 0, 1, DONTNEED)
    mix.races("racing_read", 1)


def advice_about_a_hole(mix):
    mix.does("owned_munmap", Area.ANON, 0, UNITS)
    mix.does("owned_dontneed", Area.ANON, 0, 1, DONTNEED)


def subscriber_beside_a_copy(mix):
    """A subscriber reads a page that is copied, because a child has it too, and reads it again."""
    mix.maps()
    mix.does("owned_write", Area.ANON, 0)
    mm = mix.segment.mm(0)
    subscription = mix.engine.call("mmu_notifier_register", mix.cpu, mm)
    mix.does("check_notifier", Area.ANON, 0, subscription)
    child = mix.engine.call("sys_fork", mix.cpu)
    mix.does("owned_write", Area.ANON, 0)
    mix.does("check_notifier", Area.ANON, 0, subscription)
    mix.engine.call("mmu_notifier_unregister", mix.cpu, subscription)
    mix.engine.call("mmput", mix.cpu, child)


def pin_of_an_untouched_unit(mix):
    mix.maps()
    mix.does("device_call", Area.ANON, 0)


def growth_of_a_cut_file(mix):
    mix.does("file_write", Area.SHARED_FILE, 5)
    mix.does("file_truncate", Area.SHARED_FILE, 0)
    mix.does("file_truncate", Area.SHARED_FILE, UNITS)
    mix.does("file_read", Area.SHARED_FILE, 5)


def write_to_a_protected_page(mix):
    """A fault that finds the protection would wait: a fatal signal ends that."""
    mix.maps(Area.SERVED)
    mix.does("owned_write", Area.SERVED, 0)
    mix.does("open_served")
    ctx = mix.segment.word(mix.engine.call("model_area", mix.cpu, Area.SERVED) + AreaWord.CTX)
    mode = mix.engine.call("model_unit", mix.cpu, Area.SERVED, 0) + UnitWord.MODE
    while mix.segment.word(mode) & UffdMode.WP == 0:
        mix.does("register_units", ctx, 0, UNITS)
    mix.gives(int(Prot.READ), "owned_mprotect", Area.SERVED, 0, UNITS)
    mix.does("protect_unit", ctx, 0)
    mix.gives(RW, "owned_mprotect", Area.SERVED, 0, UNITS)
    mix.segment.cpus["fatal_signal"][0] = 1
    mix.does("racing_write", Area.SERVED, 0, BEING_CHANGED)
    mix.segment.cpus["fatal_signal"][0] = 0
    mix.does("close_served", ctx)


BEING_CHANGED = 1
"""The version of an area on which a call is at work: how accesses end is not judged."""
CALLED = (
    *("cpu_online", "cpu_idle_enter", "cpu_idle_exit", "workload_setup", "model_area"),
    *("unit_rights", "owned_mmap", "owned_munmap", "owned_mprotect", "owned_dontneed"),
    *("owned_read", "owned_write", "racing_read", "racing_write", "mmu_notifier_register"),
    *("mmu_notifier_unregister", "check_notifier", "sys_fork", "mmput", "device_call"),
    *("file_write", "file_read", "file_truncate", "model_unit", "open_served"),
    *("register_units", "protect_unit", "close_served"),
)


def mixed(play, name, overrides, without=None):
    """Play with the mix; a judgement is taken away by its saying that nothing is wrong."""
    mutant = mutants()[name]
    linked = build.compose(
        STRESS,
        mutant.protocol,
        config={"CONFIG_DEBUG_VM": 1},
        overrides=overrides,
        oracles=oracles_but(without),
        entry_points=CALLED,
    )
    engine = plain(linked)
    say = engine.functions["stress_wrong"]

    def stress_wrong(cpu, wrong, *details):
        return 0 if Wrong(wrong).name == without else say(cpu, wrong, *details)

    for function in engine.functions.values():
        function.__globals__["stress_wrong"] = stress_wrong
    geometry = Geometry(nr_cpus=2, nr_spare_mms=2, nr_model_words=model_words(2))

    def run():
        mix = Mix(engine, segment)
        play(mix)
        mix.ends()

    with segment_of(geometry) as segment:
        return judged(run, segment, without)


def mix_of(name, play):
    return Case(name, functools.partial(mixed, play, name))


# What needs steps


def sleep_beside_a_writer(name, overrides, without=None):
    """A writer waits for the mmap lock, asleep, and the one before releases it.

    The watchdog knows of that by the notes of `waits`: without these it has nothing to go by.
    """
    notes = [] if without == WATCHDOG else [m for m in build.oracles() if short(m) == "waits"]
    needed = ("cpu_online", "cpu_idle_exit", "mmap_write_lock", "mmap_write_unlock")
    oracles = [*notes, *ORACLES.values()]
    linked = program(mutants()[name].protocol, overrides, None, None, oracles)
    engine = StepEngine(build.reachable(linked, [*needed, *HOOKS]))
    with segment_of(PROCESS) as segment, pytest.MonkeyPatch.context() as patch:
        first, second, third = (segment.cpu(index) for index in range(3))
        for cpu in (first, second, third):
            engine.call("cpu_online", cpu)
        engine.call("mmap_write_lock", first, segment.mm(0))
        segment.cpus["state"][0] = CpuState.IDLE  # for a holder that sleeps nobody spins
        with Script(engine, segment) as script:
            waiter = script.cpu("B", "mmap_write_lock", second, segment.mm(0)).runs_until(waits())
            segment.cpus["state"][0] = CpuState.RUNNING
            engine.call("mmap_write_unlock", first, segment.mm(0))
            watchdog = Watched(segment, patch)
            watchdog.sleeping = {1}
            if waiter.state is not FiberState.WAITING:
                return set()  # it has been woken
            try:
                watchdog.looks(5, run=(0, 2))
            except StuckError as stuck:
                return {WATCHDOG} if stuck.kind == "lost wakeup" else {stuck.kind}
    return set()


CASES = {
    "torn_read": play_of("seq_parity_only", copy_beside_a_split),
    "commit_rights": play_of("no_seq2", gate_beside_mprotect),
    "sequence": play_of("killed_writer_enters", two_killed_writers),
    "kasan": play_of("vma_freed_at_once", copy_beside_munmap),
    "lock_order": play_of("vma_locked_inside_i_mmap", schedules()["a_file_is_mapped_and_cut"].play),
    WATCHDOG: Case(
        "up_write_wakes_nobody", functools.partial(sleep_beside_a_writer, "up_write_wakes_nobody")
    ),
    "READ": mix_of("mprotect_without_flush", reads_what_is_gone),
    "WRITE": mix_of("mprotect_without_flush", writes_what_is_gone),
    "VALUE": mix_of("dirty_pages", old_value),
    "RACING_ACCESS": mix_of("mprotect_without_flush", races_for_what_is_gone),
    "RACING_VALUE": mix_of("dirty_pages", old_racing_value),
    "LOST_WRITE": mix_of("dontneed_drops_one_more", neighbour_is_dropped),
    "CALL": mix_of("advice_forgets_holes", advice_about_a_hole),
    "NOTIFIER": mix_of("subscribers_are_not_told", subscriber_beside_a_copy),
    "DMA": mix_of("pins_bring_nothing_in", pin_of_an_untouched_unit),
    "FILE": mix_of("cut_leaves_pages", growth_of_a_cut_file),
    "PROTECTED": mix_of("mprotect_ends_write_protection", write_to_a_protected_page),
    "check_locks": schedule_of("owner_stays_behind"),
    "check_cpus": schedule_of("lock_noted_for_ever"),
    "check_counters": schedule_of("write_faults_not_counted"),
    "check_rcu_queues": schedule_of("callbacks_counted_twice"),
    "check_mms": schedule_of("cpu_stays_in_the_mask"),
    "check_vmas": schedule_of("accounts_only_grow"),
    "check_latch": schedule_of("second_copy_not_balanced"),
    "check_tables": schedule_of("tables_counted_twice"),
    "check_entries": schedule_of("mprotect_changes_no_entry"),
    "check_huge_entries": schedule_of("huge_entries_are_special"),
    "check_vma_slab": schedule_of("vmacache_never_emptied"),
    "check_vma_locks": schedule_of("downgrade_keeps_vmas_locked"),
    "check_files": schedule_of("files_counted_twice"),
    "check_anon_vmas": schedule_of("degree_counted_twice"),
    "check_uffds": schedule_of("unregistered_pages_stay_protected"),
    "check_page_caches": schedule_of("cut_pages_stay_counted"),
    "check_frames": play_of("rss_counted_twice", write_and_protect),
    "check_swap": schedule_of("unmapped_swap_stays_counted"),
    "check_tlbs": play_of("mprotect_without_flush", write_and_protect),
    "check_notifiers": schedule_of("subscribers_hear_no_end"),
}


def test_every_check_has_its_mutant():
    assert set(CASES) == all_checks()
    assert {mutants()[case.mutant].promise for case in CASES.values()} == set(Promise)


@pytest.mark.parametrize("check", CASES)
def test_only_this_check_catches_its_mutant(check):
    case = CASES[check]
    mutant = (mutants()[case.mutant].path,)

    assert case.seen(mutant) == {check}
    assert case.seen(mutant, check) == set()
    assert case.seen(()) == set()


def test_the_table_in_the_docs_is_this_one():
    page = Path(__file__).parents[2] / "docs/promises.md"
    table = page.read_text(encoding="utf-8").split("<!-- only -->")[1].split("<!-- end -->")[0]
    found = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", table, re.MULTILINE)
    assert found == [(check, case.mutant) for check, case in CASES.items()]
