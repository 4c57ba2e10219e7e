# SPDX-License-Identifier: MIT
"""The rw_semaphore in random orders and under real processes: it excludes, and every wait ends."""

import lock_storm
import pytest
from lock_storm import Data
from mm_machine import Layer, Machine, engine_of, expect_stuck, seeds
from rwsem_scene import FORGETS, IGNORES_READERS, JUST_GOES, Lock

from spfemu.engines.plain import PlainEngine
from spfemu.engines.script import Script
from spfemu.engines.source import functions_of
from spfemu.engines.stepped import StepEngine, StuckError
from spfemu.events import Event
from spfemu.layout import RWSEM
from spfemu.mm import osq, rwsem, rwsem_spin, rwsem_waiters, rwsem_words
from spfemu.mm.flags import Errno
from spfemu.mm.irq import CpuState
from spfemu.mm.rwsem_words import RWSEM_WRITER_LOCKED

STORM = functions_of(lock_storm)
SHORT_TICK = 20_000
"""Cycles: short enough for handoff, long enough for a spin to be worth it."""


# Random interleavings


def random_storm(make_segment, seed: int, *layers: Layer, rounds: int = 2, tick: int = 300):
    """Let four CPUs, all running, storm the lock in an order drawn from `seed`.

    They get fatal signals meanwhile.
    """
    lock = Lock(make_segment(nr_cpus=4))
    lock.segment.reset(seed)
    lock.segment.system["cycles_per_tick"] = tick
    lock.segment.cpus["state"] = CpuState.RUNNING
    engine = engine_of(StepEngine, STORM, *layers)
    with Script(engine, lock.segment) as s:
        cpus = [
            s.cpu(name, "lock_storm", lock.segment.cpu(i), lock.sem, lock.data, rounds, 8)
            for i, name in enumerate("ABCD")
        ]
        s.cpu("K", "signal_storm", lock.segment.cpu(0), 4, 4 * rounds)
        s.runs_randomly(seed)
        visited = {engine.sites[e.site].function for e in s.executed}
        return lock, sum(cpu.result for cpu in cpus), visited


def test_random_interleavings_exclude_and_end(make_segment):
    visited = set()
    for seed in range(60):
        lock, written, seen = random_storm(make_segment, seed, tick=(0, 300, 100_000)[seed % 3])
        assert lock.inside(Data.VIOLATIONS) == 0, f"seed {seed}"
        lock.assert_excluded(written)
        lock.assert_free()
        visited |= seen
    for module in (rwsem, rwsem_words, rwsem_waiters, rwsem_spin, osq):
        assert set(functions_of(module)) <= visited


def test_random_interleavings_would_see_a_wait_without_end(make_segment):
    with pytest.raises(StuckError, match="deadlock"):
        for seed in range(20):
            random_storm(make_segment, seed, FORGETS)


def test_random_interleavings_would_see_a_broken_line(make_segment):
    with pytest.raises((AssertionError, StuckError)):
        for seed in range(50):
            lock, _, _ = random_storm(make_segment, seed, JUST_GOES)
            lock.assert_free()


def test_random_interleavings_would_see_a_writer_beside_readers(make_segment):
    found = 0
    for seed in range(20):
        lock, _, _ = random_storm(make_segment, seed, IGNORES_READERS)
        found += lock.inside(Data.VIOLATIONS)
    assert found


# Real processes


@pytest.fixture
def machine(make_machine) -> Machine:
    """Four CPUs, handoff after 20,000 cycles."""
    made = make_machine(STORM, nr_cpus=4)
    made.segment.system["cycles_per_tick"] = SHORT_TICK
    return made


def storm(machine: Machine, rounds: int, *, kill: bool) -> Lock:
    """Storm a lock from four processes, with signals if `kill`; check what they did."""
    lock = Lock(machine.segment)
    nr_cpus = machine.segment.geometry.nr_cpus
    with machine.workers() as workers:
        workers.start_gated(
            {
                i: ("lock_storm", machine.cpu(i), lock.sem, lock.data, rounds, 4)
                for i in range(nr_cpus)
            }
        )
        turn = 0

        def send_a_signal() -> bool:
            nonlocal turn
            turn += 1
            if kill:
                machine.call("send_fatal_signal", machine.cpu(turn % nr_cpus))
            return all(workers.finished(i) for i in range(nr_cpus))

        workers.wait_until(send_a_signal)
        written = sum(workers.join().values())
    lock.assert_excluded(written)
    lock.assert_free()
    return lock


def test_real_processes_exclude_and_end(machine):
    slept = 0
    for seed in seeds(6):
        machine.segment.reset(seed)
        machine.segment.system["cycles_per_tick"] = SHORT_TICK
        storm(machine, 2000, kill=seed % 2 == 1)
        slept += min(machine.total(e) for e in (Event.RWSEM_READ_SLEEP, Event.RWSEM_WRITE_SLEEP))
    assert slept, "inconclusive: no reader or no writer had to sleep"


def test_an_interpreted_worker_shares_the_lock(machine):
    lock = Lock(machine.segment)
    plain = PlainEngine(machine.program)
    arguments = lock.sem, lock.data
    with machine.workers() as workers:
        workers.start_python(
            0, lambda: int(plain.call("lock_storm", machine.cpu(0), *arguments, 200, 8))
        )
        for i in (1, 2):
            workers.start(i, "lock_storm", machine.cpu(i), *arguments, 2000, 4)
        written = sum(workers.join().values())
    lock.assert_excluded(written)
    lock.assert_free()


def test_exclusion_that_fails_would_be_seen(make_machine):
    machine = make_machine(STORM, IGNORES_READERS, nr_cpus=4)
    with pytest.raises(AssertionError):
        for seed in seeds(20):
            machine.segment.reset(seed)
            storm(machine, 2000, kill=False)


def test_a_sleeper_is_woken(machine):
    lock = Lock(machine.segment)
    machine.call("down_write", machine.cpu(0), lock.sem)
    with machine.workers() as workers:
        workers.start(1, "down_write", machine.cpu(1), lock.sem)
        workers.wait_until(lambda: machine.event(1, Event.RWSEM_WRITE_SLEEP))
        machine.call("up_write", machine.cpu(0), lock.sem)
        workers.join()
    assert lock.count == RWSEM_WRITER_LOCKED


def test_a_forgotten_wakeup_would_be_seen(make_machine):
    machine = make_machine(FORGETS, nr_cpus=4)
    lock = Lock(machine.segment)
    machine.call("down_write", machine.cpu(0), lock.sem)

    def run(workers):
        workers.start(1, "down_write", machine.cpu(1), lock.sem)
        workers.wait_until(lambda: machine.event(1, Event.RWSEM_WRITE_SLEEP))
        machine.call("up_write", machine.cpu(0), lock.sem)

    expect_stuck(run, machine)


@pytest.mark.parametrize("function", ["down_read_killable", "down_write_killable"])
def test_a_sleeper_is_killed(machine, function):
    lock = Lock(machine.segment)
    machine.call("down_write", machine.cpu(0), lock.sem)
    with machine.workers() as workers:
        workers.start(1, function, machine.cpu(1), lock.sem)
        workers.wait_until(lambda: machine.segment.cpus["state"][1] == CpuState.IDLE)
        machine.call("send_fatal_signal", machine.cpu(1))
        assert workers.join() == {1: -Errno.EINTR}
    assert lock.count == RWSEM_WRITER_LOCKED
    assert lock.queue() == []


def test_a_spinner_gets_the_lock_without_sleep(machine):
    lock = Lock(machine.segment)
    machine.segment.system["cycles_per_tick"] = 1 << 40
    with machine.workers() as workers:
        workers.start(0, "hold_for_writing", machine.cpu(0), lock.sem, lock.data)
        workers.wait_until(lambda: lock.count)
        workers.start(1, "down_write", machine.cpu(1), lock.sem)
        workers.wait_until(lambda: lock.word(RWSEM.osq) == 2)
        machine.segment.words[(lock.data - machine.segment.base) // 8] = 1
        workers.join()
    assert machine.event(1, Event.RWSEM_OPTIMISTIC) == 1
    assert machine.event(1, Event.RWSEM_WRITE_SLEEP) == 0


def test_a_writer_gets_through_a_crowd_of_readers(machine):
    lock = Lock(machine.segment)
    with machine.workers() as workers:
        for i in (1, 2, 3):
            workers.start(i, "read_until_stopped", machine.cpu(i), lock.sem, lock.data)
        workers.wait_until(lambda: lock.count)
        workers.start(0, "lock_storm", machine.cpu(0), lock.sem, lock.data, 200, 16)
        workers.wait_until(lambda: workers.finished(0))
        machine.segment.system["stop"] = 1
        written = workers.join()[0]
    lock.assert_excluded(written)


def test_the_spin_queue_excludes_and_may_be_left(machine):
    for seed in seeds(3):
        machine.segment.reset(seed)
        lock = Lock(machine.segment)
        with machine.workers() as workers:
            workers.start_gated(
                {
                    i: ("osq_storm", machine.cpu(i), lock.sem, lock.data, 3000, 20_000)
                    for i in range(4)
                }
            )
            got = sum(workers.join().values())
        lock.assert_excluded(got)
        assert machine.segment.word(lock.sem) == 0
        assert got < 4 * 3000, "inconclusive: nobody left the line"
