# SPDX-License-Identifier: MIT
"""RCU: no grace period ends early, every callback runs, waiting ends.

The objects are VMA slots and PAGEs that CPUs publish in a table, look up and replace.  A callback
poisons its object and hands it out again, so a reader whose grace period ended early sees an
object that is dead, or that has another generation than it had a moment ago.
"""

import pytest
from mm_machine import Layer, Machine, engine_of, expect_stuck, seeds
from rcu_ops import DROPS, EARLY, NEVER_SAYS_SO, OWN, STORM, Objects

from spfemu.engines.plain import KernelPanic
from spfemu.engines.script import Script, ScriptCpu, before, waits
from spfemu.engines.source import functions_of
from spfemu.engines.stepped import StepEngine
from spfemu.events import Event
from spfemu.layout import VMA, WORD
from spfemu.mm import rcu
from spfemu.mm.bug import Bug
from spfemu.mm.irq import CpuState
from spfemu.mm.rcu import RCU_BLIMIT, RCU_QHIMARK

# Scripted


class Scene:
    """Three running CPUs, A to C, with one object published in entry 0."""

    def __init__(self, make_segment, *layers: Layer) -> None:
        self.segment = make_segment(nr_cpus=3, nr_frames=64, nr_vmas=2048)
        self.objects = Objects(self.segment)
        self.segment.cpus["state"] = CpuState.RUNNING
        self.engine = engine_of(StepEngine, STORM, OWN, *layers)
        self.entry = self.objects.table
        self.does("A", "replace_entry", self.entry, 0)
        (self.object,) = self.objects.published()

    def cpu(self, name: str) -> int:
        """Address of a CPU by letter."""
        return self.segment.cpu("ABC".index(name))

    def does(self, name: str, function: str, *arguments: int) -> int:
        """Run a function on a CPU to its end."""
        return self.engine.call(function, self.cpu(name), *arguments)

    def all_but(self, *names: str, times: int = 20) -> None:
        """Let the other CPUs pass between operations, again and again."""
        for _ in range(times):
            for name in "ABC":
                if name not in names:
                    self.does(name, "cond_resched")

    @property
    def gone(self) -> bool:
        """Whether the object's callback has run."""
        return not self.objects.alive(self.object)


def reader_before_unlinking(s: Scene) -> None:
    """B is in a section since before A unlinked the object."""
    s.does("B", "rcu_read_lock")
    s.does("A", "replace_entry", s.entry, 0)


def reader_that_has_reported(s: Scene) -> None:
    """B has reported in the running grace period, then found the object that A then unlinks."""
    s.segment.system["rcu_gp"] += 1
    s.does("B", "cond_resched")
    s.does("B", "rcu_read_lock")
    s.does("A", "replace_entry", s.entry, 0)


def reader_that_woke(s: Scene) -> None:
    """B was idle when the grace period began, and found the object before A unlinked it."""
    s.does("B", "cpu_idle_enter")
    s.does("B", "cpu_idle_exit")
    s.does("B", "rcu_read_lock")
    s.does("A", "replace_entry", s.entry, 0)


def nested_reader(s: Scene) -> None:
    """B has left the inner of two sections."""
    s.does("B", "rcu_read_lock")
    s.does("B", "rcu_read_lock")
    s.does("A", "replace_entry", s.entry, 0)
    s.does("B", "rcu_read_unlock")


READERS = [reader_before_unlinking, reader_that_has_reported, reader_that_woke, nested_reader]


@pytest.mark.parametrize("reader", READERS)
def test_an_object_outlives_its_readers_and_no_more(make_segment, reader):
    s = Scene(make_segment)
    reader(s)
    s.all_but("B")
    assert not s.gone
    s.does("B", "rcu_read_unlock")
    s.all_but("B")
    assert not s.gone  # outside, but it has not said so
    s.all_but(times=3)
    assert s.gone


@EARLY
def test_an_early_end_would_be_seen(make_segment, layer):
    early = 0
    for reader in READERS:
        s = Scene(make_segment, layer)
        reader(s)
        s.all_but("B")
        early += s.gone
    assert early


@pytest.mark.parametrize("state", [CpuState.IDLE, CpuState.OFFLINE])
def test_cpus_that_do_not_run_hold_nothing_up(make_segment, state):
    s = Scene(make_segment)
    s.segment.cpus["state"][1:] = state
    s.does("A", "replace_entry", s.entry, 0)
    s.all_but("B", "C", times=4)
    assert s.gone


def test_a_cpu_that_wakes_holds_up_the_grace_period_that_missed_it(make_segment):
    """B goes on running just before the look at its state."""
    s = Scene(make_segment)
    s.segment.cpus["state"][1] = CpuState.IDLE
    with Script(s.engine, s.segment) as script:
        s.does("A", "replace_entry", s.entry, 0)
        s.all_but("B", times=1)
        s.segment.system["rcu_gp"] += 1
        s.all_but("A", "B", times=1)
        a = script.cpu("A", "cond_resched", s.cpu("A"))
        a.runs_until(before("rcu_cpu_quiescent", nth=2))
        script.cpu("B", "cpu_idle_exit", s.cpu("B")).runs_to_end()
        s.does("B", "rcu_read_lock")
        gp = int(s.segment.system["rcu_gp"])
        a.runs_to_end()
    assert s.segment.system["rcu_gp"] == gp
    s.all_but("B")
    assert not s.gone


def test_a_late_reader_finds_the_first_word_overwritten_and_the_rest_intact(make_segment):
    s = Scene(make_segment)
    s.does("A", "replace_entry", s.entry, 0)
    before_ = [s.segment.word(s.object + WORD * i) for i in range(VMA.SIZE // WORD)]
    other = s.objects.published()[0]
    s.does("A", "replace_entry", s.entry, 0)
    after_ = [s.segment.word(s.object + WORD * i) for i in range(VMA.SIZE // WORD)]
    assert before_[0] == 0
    assert after_[0] == other  # queued behind it
    assert before_[1:] == after_[1:]


def test_nothing_to_do_costs_a_few_loads(make_segment):
    s = Scene(make_segment)
    with Script(s.engine, s.segment) as script:
        for name, function, loads in (("A", "rcu_check_callbacks", 1), ("B", "rcu_quiescent", 3)):
            script.cpu(name, function, s.cpu(name)).runs_to_end()
            used = [s.engine.sites[e.site].primitive for e in script.executed]
            script.executed.clear()
            assert set(used) <= {"enter", "return", "load", "read_once"}
            assert used.count("load") + used.count("read_once") == loads


def queue_objects(s: Scene, count: int) -> None:
    """Queue `count` VMA slots on A, as if they had been unlinked."""
    first = s.segment.address["vmas"] + 100 * VMA.SIZE
    for i in range(count):
        s.does("A", "call_rcu", first + i * VMA.SIZE)


def callbacks(s: Scene) -> int:
    """Callbacks that A has run."""
    return int(s.segment.cpus["event"][0][Event.RCU_CALLBACK])


def test_callbacks_run_in_order_and_a_bounded_number_at_once(make_segment):
    s = Scene(make_segment)
    count = 2 * RCU_BLIMIT + 3
    queue_objects(s, count)
    ran = [0]
    while ran[-1] < count:
        s.all_but(times=1)
        if callbacks(s) > ran[-1]:
            ran.append(callbacks(s))
    assert ran == [0, RCU_BLIMIT, 2 * RCU_BLIMIT, count]
    first = s.segment.address["vmas"] + 100 * VMA.SIZE
    newest_first = [first + i * VMA.SIZE for i in reversed(range(count))]
    pool = int(s.segment.cpus["vma_list"][0])
    for obj in newest_first:
        assert pool == obj
        pool = s.segment.word(s.objects.state(obj) - WORD)


def test_a_flood_of_callbacks_is_run_at_once(make_segment):
    s = Scene(make_segment)
    queue_objects(s, RCU_QHIMARK + 1)
    while callbacks(s) == 0:
        s.all_but(times=1)
    assert callbacks(s) == RCU_QHIMARK + 1


def test_grace_periods_run_only_while_somebody_waits(make_segment):
    s = Scene(make_segment)
    gp = int(s.segment.system["rcu_gp"])
    s.all_but()
    assert s.segment.system["rcu_gp"] == gp
    s.does("A", "replace_entry", s.entry, 0)
    s.all_but()
    ended = int(s.segment.system["rcu_gp"])
    assert ended == gp + 2
    assert s.segment.cpus["event"][:, Event.RCU_GP].sum() == 2
    s.all_but()
    assert s.segment.system["rcu_gp"] == ended


def synchronizing(script: Script, s: Scene) -> ScriptCpu:
    """Let A wait for B, which is in a section."""
    s.does("B", "rcu_read_lock")
    a = script.cpu("A", "synchronize_rcu", s.cpu("A"))
    s.segment.cpus["state"][2] = CpuState.IDLE
    return a.runs_until(waits())


def test_synchronize_waits_for_readers_and_serves_ipis(make_segment):
    s = Scene(make_segment)
    with Script(s.engine, s.segment) as script:
        a = synchronizing(script, s)
        s.segment.cpus["ipi_request"][0] += 1
        a.takes_steps(100)
        assert s.segment.cpus["ipi_done"][0] == s.segment.cpus["ipi_request"][0]
        s.does("B", "rcu_read_unlock")
        assert a.runs_until(waits()).done is False
        s.does("B", "cond_resched")
        a.runs_to_end()


@pytest.mark.parametrize(
    ("function", "nesting", "bug"),
    [
        ("synchronize_rcu", 1, Bug.SLEEP_IN_ATOMIC),
        ("rcu_barrier", 1, Bug.SLEEP_IN_ATOMIC),
        ("cpu_idle_enter", 1, Bug.SLEEP_IN_ATOMIC),
        ("cond_resched", 1, Bug.RCU_UNBALANCED),
        ("rcu_read_unlock", 0, Bug.RCU_UNBALANCED),
    ],
)
def test_wrong_use_is_a_bug(make_segment, function, nesting, bug):
    s = Scene(make_segment)
    s.segment.cpus["rcu_nesting"][0] = nesting
    s.segment.system["rcu_gp"] += 1
    with pytest.raises(KernelPanic) as panic:
        s.does("A", function)
    assert panic.value.code == bug


# Random interleavings


def random_storm(make_segment, seed: int, *layers: Layer) -> tuple[Objects, set[str]]:
    """Let three CPUs look up and replace in an order drawn from `seed`."""
    objects = Objects(make_segment(nr_cpus=3, nr_frames=64, nr_vmas=64), seed)
    segment = objects.segment
    segment.cpus["state"] = CpuState.RUNNING
    engine = engine_of(StepEngine, STORM, OWN, *layers)
    with Script(engine, segment) as s:
        for i, name in enumerate("ABC"):
            s.cpu(name, "rcu_storm", segment.cpu(i), objects.table, 12, 8)
        s.runs_randomly(seed)
        visited = {engine.sites[e.site].function for e in s.executed}
    segment.cpus["state"] = CpuState.IDLE
    for i in range(3):
        engine.call("rcu_barrier", segment.cpu(i))
    return objects, visited


def test_random_interleavings_free_everything_and_nothing_early(make_segment):
    visited = set()
    for seed in range(60):
        objects, seen = random_storm(make_segment, seed)
        assert not objects.violated, f"seed {seed}"
        objects.assert_complete()
        visited |= seen
    assert set(functions_of(rcu)) - visited <= {"rcu_barrier"}


@EARLY
def test_random_interleavings_would_see_an_early_end(make_segment, layer):
    for seed in range(300):
        if random_storm(make_segment, seed, layer)[0].violated:
            return
    pytest.fail("nobody noticed")


def test_random_interleavings_would_see_a_lost_callback(make_segment):
    with pytest.raises(AssertionError):
        for seed in range(20):
            random_storm(make_segment, seed, DROPS)[0].assert_complete()


# Real processes


def storm(machine: Machine, seed: int, rounds: int = 20_000) -> Objects:
    """Look up and replace in four processes."""
    objects = Objects(machine.segment, seed)
    with machine.workers() as workers:
        workers.start_gated(
            {
                i: ("rcu_storm", machine.cpu(i), objects.table, rounds, (2, 8, 8, 14)[i])
                for i in range(4)
            }
        )
        queued = sum(workers.join().values())
    for i in range(4):
        machine.call("rcu_barrier", machine.cpu(i))
    assert machine.total(Event.RCU_CALLBACK) == queued
    assert queued, "inconclusive: nothing was ever replaced"
    return objects


def test_real_processes_free_everything_and_nothing_early(make_machine):
    machine = make_machine(STORM, OWN, nr_cpus=4, nr_frames=64, nr_vmas=64)
    for seed in seeds(5):
        objects = storm(machine, seed)
        assert not objects.violated, f"seed {seed}"
        objects.assert_complete()


@EARLY
def test_real_processes_would_see_an_early_end(make_machine, layer):
    machine = make_machine(STORM, OWN, layer, nr_cpus=4, nr_frames=64, nr_vmas=64)
    for seed in seeds(50):
        if storm(machine, seed).violated:
            return
    pytest.fail("nobody noticed")


def test_a_cpu_that_never_reports_would_be_seen(make_machine):
    machine = make_machine(STORM, OWN, NEVER_SAYS_SO, nr_cpus=4, nr_frames=64, nr_vmas=64)
    table = Objects(machine.segment).table

    def run(workers):
        workers.start(0, "rcu_storm", machine.cpu(0), table, 1 << 40, 0)
        workers.wait_until(lambda: machine.segment.cpus["state"][0] == CpuState.RUNNING)
        workers.start(1, "synchronize_rcu", machine.cpu(1))
        workers.wait_until(lambda: workers.finished(1))

    expect_stuck(run, machine)
