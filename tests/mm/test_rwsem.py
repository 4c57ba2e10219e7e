# SPDX-License-Identifier: MIT
"""The rw_semaphore: who may be inside, who gets it next, and that every wait ends.

Here the stepped engine is asked, with scripted interleavings: they are repeatable, and a wait that
cannot end is seen at once.  test_rwsem_storm.py asks random ones, and real processes: for memory
order, futexes and time.
"""

import pytest
from mm_machine import Layer, core_layer, engine_of
from rwsem_scene import ARMS_LATE, IGNORES_HANDOFF, KEEPS_WAKEUP, KEEPS_WORD, OVERTAKES, Lock, Scene

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.script import ScriptCpu, after, before, waits
from spfemu.engines.source import link
from spfemu.engines.stepped import FiberState, StepEngine
from spfemu.events import Event
from spfemu.layout import RWSEM
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Errno
from spfemu.mm.irq import CpuState
from spfemu.mm.rwsem_words import (
    RWSEM_FLAG_HANDOFF,
    RWSEM_FLAG_WAITERS,
    RWSEM_LOCK_MASK,
    RWSEM_READER_BIAS,
    RWSEM_READER_OWNED,
    RWSEM_WRITER_LOCKED,
)

# Uncontended


@pytest.fixture(params=[NativeEngine, PlainEngine, StepEngine])
def alone(request, make_segment):
    """Each engine, and a lock that nobody else uses."""
    kind = request.param
    engine = kind(link([core_layer()], {})) if kind is PlainEngine else engine_of(kind)
    return engine, Lock(make_segment(nr_cpus=2))


def test_fast_paths_leave_the_count_as_documented(alone):
    engine, lock = alone
    cpu, sem = lock.segment.cpu(1), lock.sem
    for take, release, expected, owner in (
        ("down_read", "up_read", RWSEM_READER_BIAS, 2 | RWSEM_READER_OWNED),
        ("down_read_killable", "up_read", RWSEM_READER_BIAS, 2 | RWSEM_READER_OWNED),
        ("down_read_trylock", "up_read", RWSEM_READER_BIAS, 2 | RWSEM_READER_OWNED),
        ("down_write", "up_write", RWSEM_WRITER_LOCKED, 2),
        ("down_write_killable", "up_write", RWSEM_WRITER_LOCKED, 2),
        ("down_write_trylock", "up_write", RWSEM_WRITER_LOCKED, 2),
    ):
        assert engine.call(take, cpu, sem) == int(take.endswith("trylock"))
        assert lock.count == expected
        assert lock.word(RWSEM.owner) == owner
        engine.call(release, cpu, sem)
        lock.assert_free()
    assert lock.segment.cpus["event"].sum() == 0  # no slow path


def test_readers_share_and_trylocks_see_every_holder(alone):
    engine, lock = alone
    first, second, sem = lock.segment.cpu(0), lock.segment.cpu(1), lock.sem
    engine.call("down_read", first, sem)
    assert engine.call("down_read_trylock", second, sem) == 1
    assert lock.count == 2 * RWSEM_READER_BIAS
    assert engine.call("down_write_trylock", second, sem) == 0
    engine.call("up_read", second, sem)
    assert engine.call("down_write_trylock", second, sem) == 0
    engine.call("up_read", first, sem)
    engine.call("down_write", first, sem)
    assert engine.call("down_read_trylock", second, sem) == 0
    assert engine.call("down_write_trylock", second, sem) == 0
    engine.call("downgrade_write", first, sem)
    assert engine.call("down_read_trylock", second, sem) == 1
    assert lock.count == 2 * RWSEM_READER_BIAS


def test_a_fatal_signal_ends_waits_only(alone):
    engine, lock = alone
    cpu, sem = lock.segment.cpu(0), lock.sem
    engine.call("send_fatal_signal", cpu)
    assert engine.call("down_write_killable", cpu, sem) == 0
    engine.call("up_write", cpu, sem)
    assert engine.call("down_read_killable", cpu, sem) == 0


@pytest.mark.parametrize(
    ("function", "held"),
    [
        ("up_read", 0),
        ("up_write", 0),
        ("up_write", RWSEM_READER_BIAS),
        ("downgrade_write", RWSEM_READER_BIAS),
    ],
)
def test_releasing_what_is_not_held_is_a_bug(make_segment, function, held):
    lock = Lock(make_segment(nr_cpus=1))
    lock.segment.words[(lock.sem - lock.segment.base) // 8] = held
    with pytest.raises(KernelPanic) as panic:
        engine_of(StepEngine).call(function, lock.segment.cpu(0), lock.sem)
    assert panic.value.code == Bug.RWSEM_UNDERFLOW


@pytest.mark.parametrize("where", ["rcu_nesting", "irqs_disabled"])
def test_waiting_in_atomic_context_is_a_bug(make_segment, where):
    lock = Lock(make_segment(nr_cpus=2))
    engine = engine_of(StepEngine)
    engine.call("down_write", lock.segment.cpu(1), lock.sem)
    lock.segment.cpus[where][0] = 1
    for function in ("down_read", "down_write"):
        with pytest.raises(KernelPanic) as panic:
            engine.call(function, lock.segment.cpu(0), lock.sem)
        assert panic.value.code == Bug.SLEEP_IN_ATOMIC


# Scripted: who is next.  An owner that is not running (CPU.state is 0) is not spun for.


def test_the_queue_is_served_in_order_but_readers_go_together(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_read")
        c = s.waits("C", "down_write")
        d = s.waits("D", "down_read")
        assert s.lock.queue() == [1, 2, 3]
        assert s.lock.count == RWSEM_WRITER_LOCKED | RWSEM_FLAG_WAITERS
        s.does("A", "up_write")
        # counted into the lock by the one who wakes, before they run
        assert s.lock.count == 2 * RWSEM_READER_BIAS | RWSEM_FLAG_WAITERS
        assert s.lock.queue() == [2]
        b.runs_to_end()
        d.runs_to_end()
        s.does("B", "up_read")
        s.does("D", "up_read")
        c.runs_to_end()
        assert s.lock.count == RWSEM_WRITER_LOCKED
        s.does("C", "up_write")
        s.lock.assert_free()


def test_a_writer_that_is_first_is_woken_alone(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_write")
        c = s.waits("C", "down_read")
        s.does("A", "up_write")
        b.runs_to_end()
        assert s.lock.queue() == [2]
        s.does("B", "up_write")
        c.runs_to_end()
        assert s.lock.count == RWSEM_READER_BIAS


def test_downgrade_lets_readers_in_and_keeps_writers_out(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_read")
        c = s.waits("C", "down_write")
        s.does("A", "downgrade_write")
        b.runs_to_end()
        assert s.lock.count == 2 * RWSEM_READER_BIAS | RWSEM_FLAG_WAITERS
        assert not c.done
        s.does("A", "up_read")
        assert s.lock.queue() == [2]
        s.does("B", "up_read")
        c.runs_to_end()
        assert s.lock.count == RWSEM_WRITER_LOCKED


def test_downgrade_does_not_let_readers_pass_a_writer_that_is_first(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        s.waits("B", "down_write")
        s.waits("C", "down_read")
        s.does("A", "downgrade_write")
        assert s.lock.queue() == [1, 2]
        assert s.lock.count == RWSEM_READER_BIAS | RWSEM_FLAG_WAITERS


READER_SPIN_TICK = 8000
"""Cycles: spinning for readers ends after 20 of them then."""


def readers_that_overlap_for_ever(s: Scene) -> bool:
    """Let A and D read in turn while B waits to write; tells whether they can go on."""
    s.does("A", "down_read")
    s.waits("B", "down_write")
    return bool(s.does("D", "down_read_trylock"))


def test_new_readers_do_not_starve_a_writer(make_segment):
    with Scene(make_segment, tick=READER_SPIN_TICK) as s:
        assert not readers_that_overlap_for_ever(s)
        d = s.waits("D", "down_read")  # nor in the slow path: a reader has the lock already
        assert s.lock.queue() == [1, 3]
        s.does("A", "up_read")
        assert not d.done


def test_starvation_would_be_seen(make_segment):
    with Scene(make_segment, OVERTAKES, tick=READER_SPIN_TICK) as s:
        assert readers_that_overlap_for_ever(s)


def test_a_lone_reader_steals_from_a_queued_writer(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_write")
        s.does("A", "up_write")
        s.does("C", "down_read")
        assert b.runs_until(waits()).state is FiberState.WAITING
        assert s.lock.count == RWSEM_READER_BIAS | RWSEM_FLAG_WAITERS
        s.does("C", "up_read")
        b.runs_to_end()


def test_a_stealing_reader_takes_the_readers_at_the_head_along(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_read")
        release = s.runs("A", "up_write").runs_until(before("rwsem_wake"))
        s.does("C", "down_read")
        assert s.lock.queue() == []
        b.runs_to_end()
        release.runs_to_end()
        assert s.lock.count == 2 * RWSEM_READER_BIAS


def handoff_to_a_writer(s: Scene) -> tuple[ScriptCpu, ScriptCpu]:
    """Let a reader steal from a writer that has run out of patience; then another reader come."""
    s.does("A", "down_write")
    b = s.waits("B", "down_write")
    s.does("A", "up_write")
    s.does("C", "down_read")
    s.loses_patience("B")
    b.runs_until(waits())
    assert s.lock.count == RWSEM_READER_BIAS | RWSEM_FLAG_WAITERS | RWSEM_FLAG_HANDOFF
    assert s.event("B", Event.RWSEM_HANDOFF) == 1
    s.does("C", "up_read")
    assert s.lock.count & RWSEM_LOCK_MASK == 0
    d = s.runs("D", "down_read").runs_until(waits())
    return b, d


def test_handoff_ends_stealing_from_a_writer(make_segment):
    with Scene(make_segment) as s:
        b, d = handoff_to_a_writer(s)
        assert s.does("C", "down_write_trylock") == 0
        assert s.does("C", "down_read_trylock") == 0
        b.runs_to_end()
        assert s.lock.count == RWSEM_WRITER_LOCKED | RWSEM_FLAG_WAITERS
        s.does("B", "up_write")
        d.runs_to_end()
        s.does("D", "up_read")
        s.lock.assert_free()


def test_ignoring_handoff_would_be_seen(make_segment):
    seen = pytest.raises(AssertionError, match="ends without")
    with Scene(make_segment, IGNORES_HANDOFF) as s, seen:
        handoff_to_a_writer(s)


def test_a_reader_gets_handoff_from_writers_that_steal(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_read")
        release = s.runs("A", "up_write").runs_until(before("rwsem_wake"))
        s.does("C", "down_write")
        assert s.event("C", Event.RWSEM_OPTIMISTIC) == 1
        s.loses_patience("B")
        release.runs_to_end()
        assert s.lock.count == RWSEM_WRITER_LOCKED | RWSEM_FLAG_WAITERS | RWSEM_FLAG_HANDOFF
        s.waits("D", "down_write")
        s.does("C", "up_write")
        b.runs_to_end()
        assert s.lock.count == RWSEM_READER_BIAS | RWSEM_FLAG_WAITERS


@pytest.mark.parametrize("function", ["down_read_killable", "down_write_killable"])
def test_a_killed_waiter_leaves_the_queue_as_if_it_had_never_come(make_segment, function):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", function)
        s.kills("B")
        assert b.runs_to_end() == -Errno.EINTR
        assert s.lock.count == RWSEM_WRITER_LOCKED
        assert s.lock.queue() == []
        s.does("A", "up_write")
        s.lock.assert_free()


@pytest.mark.parametrize("function", ["down_read_killable", "down_write_killable"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_killed_waiter_leaves_the_others_in_order(make_segment, function, position):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        functions = ["down_write", "down_write"]
        functions.insert(position, function)
        waiting = [s.waits(name, f) for name, f in zip("BCD", functions, strict=True)]
        victim = waiting.pop(position)
        s.kills("BCD"[position])
        assert victim.runs_to_end() == -Errno.EINTR
        rest = [i for i in (1, 2, 3) if i != position + 1]
        assert s.lock.queue() == rest
        assert s.lock.count == RWSEM_WRITER_LOCKED | RWSEM_FLAG_WAITERS
        s.does("A", "up_write")
        for cpu, index in zip(waiting, rest, strict=True):
            cpu.runs_to_end()
            s.does("ABCD"[index], "up_write")
        s.lock.assert_free()


def release_between_try_and_sleep(s: Scene) -> ScriptCpu:
    """Release the lock when B has just failed to get it and is about to sleep."""
    s.does("A", "down_write")
    b = s.runs("B", "down_write").runs_until(after("spin_unlock", inside="rwsem_wait_for_write"))
    s.does("A", "up_write")
    return b


def test_no_wakeup_is_lost_before_the_sleep(make_segment):
    with Scene(make_segment) as s:
        release_between_try_and_sleep(s).runs_to_end()
        assert s.event("B", Event.RWSEM_WRITE_SLEEP) == 0


def test_a_lost_wakeup_would_be_seen(make_segment):
    with Scene(make_segment, ARMS_LATE) as s:
        b = release_between_try_and_sleep(s)
        with pytest.raises(AssertionError, match="waits without"):
            b.runs_to_end()


def signal_between_look_and_sleep(s: Scene, function: str) -> int:
    """Send a fatal signal to B when it has found none and is about to sleep."""
    s.does("A", "down_write")
    b = s.runs("B", function).runs_until(before("cpu_sleep"))
    s.kills("B")
    return b.runs_to_end()


@pytest.mark.parametrize("function", ["down_read_killable", "down_write_killable"])
def test_no_signal_is_lost_before_the_sleep(make_segment, function):
    with Scene(make_segment) as s:
        assert signal_between_look_and_sleep(s, function) == -Errno.EINTR


@pytest.mark.parametrize("function", ["down_read_killable", "down_write_killable"])
def test_a_lost_signal_would_be_seen(make_segment, function):
    seen = pytest.raises(AssertionError, match="waits without")
    with Scene(make_segment, KEEPS_WORD) as s, seen:
        signal_between_look_and_sleep(s, function)


def test_a_waiter_that_is_not_killable_sleeps_on(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        for name, function in (("B", "down_read"), ("C", "down_write")):
            cpu = s.waits(name, function)
            s.kills(name)
            assert cpu.runs_until(waits()).state is FiberState.WAITING
        assert s.lock.queue() == [1, 2]


def test_a_reader_killed_after_it_was_granted_the_lock_has_it(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_read_killable")
        release = s.runs("A", "up_write").runs_until(before("rwsem_wake_up"))
        s.kills("B")
        b.runs_until(waits())
        release.runs_to_end()
        assert b.runs_to_end() == 0
        assert s.lock.count == RWSEM_READER_BIAS


def killed_with_a_wakeup(s: Scene) -> ScriptCpu:
    """Kill B, the first in the queue, so that it leaves with the wake-up that A's release sent."""
    s.does("A", "down_write")
    b = s.runs("B", "down_write_killable").runs_until(after("rwsem_try_write_lock"))
    # wait_lock is still B's: go on to where it has looked and will leave
    s.kills("B")
    b.runs_until(before("rwsem_cancel_wait"))
    c = s.waits("C", "down_write")
    s.does("A", "up_write")
    assert b.runs_to_end() == -Errno.EINTR
    return c


def test_a_killed_waiter_passes_its_wakeup_on(make_segment):
    with Scene(make_segment) as s:
        c = killed_with_a_wakeup(s)
        c.runs_to_end()
        s.does("C", "up_write")
        s.lock.assert_free()


def test_a_wakeup_that_goes_with_the_killed_would_be_seen(make_segment):
    with Scene(make_segment, KEEPS_WAKEUP) as s:
        c = killed_with_a_wakeup(s)
        with pytest.raises(AssertionError, match="waits without"):
            c.runs_to_end()


def test_handoff_is_withdrawn_with_the_waiter_that_asked(make_segment):
    with Scene(make_segment) as s:
        s.does("A", "down_write")
        b = s.waits("B", "down_write_killable")
        s.does("A", "up_write")
        s.does("C", "down_read")
        s.loses_patience("B")
        b.runs_until(waits())
        assert s.lock.count & RWSEM_FLAG_HANDOFF
        s.kills("B")
        assert b.runs_to_end() == -Errno.EINTR
        assert s.lock.count == RWSEM_READER_BIAS


# Scripted: spinning.  Here the CPUs run.


@pytest.fixture
def running(make_segment):
    """Return a function that makes a scene whose CPUs are all running."""

    def make(*layers: Layer, tick: int = 1 << 40) -> Scene:
        scene = Scene(make_segment, *layers, tick=tick)
        scene.lock.segment.cpus["state"] = CpuState.RUNNING
        return scene

    return make


def test_a_writer_spins_for_a_running_writer(running):
    with running() as s:
        s.does("A", "down_write")
        b = s.spins("B", "down_write")
        c = s.spins("C", "down_write")
        assert s.lock.word(RWSEM.osq) == 3  # C's number: it stands behind B
        assert s.lock.queue() == []
        s.does("A", "up_write")
        b.runs_to_end()
        s.does("B", "up_write")
        c.runs_to_end()
        assert s.event("B", Event.RWSEM_OPTIMISTIC) == s.event("C", Event.RWSEM_OPTIMISTIC) == 1
        assert s.event("B", Event.RWSEM_WRITE_SLEEP) == s.event("C", Event.RWSEM_WRITE_SLEEP) == 0


def test_a_writer_stops_spinning_when_the_owner_sleeps(running):
    with running() as s:
        s.does("A", "down_write")
        b = s.spins("B", "down_write")
        s.lock.segment.cpus["state"][0] = CpuState.IDLE
        b.runs_until(before("cpu_sleep"))
        assert s.lock.queue() == [1]
        assert s.lock.word(RWSEM.osq) == 0


def test_a_writer_gives_up_spinning_for_readers(running):
    with running(tick=READER_SPIN_TICK) as s:
        s.does("A", "down_read")
        b = s.waits("B", "down_write")
        assert s.lock.queue() == [1]
        s.waits("C", "down_write")
        assert "rwsem_optimistic_spin" not in {
            s.engine.sites[e.site].function for e in s.executed if e.cpu == len(s.cpus) - 1
        }
        s.does("A", "up_read")
        b.runs_to_end()


def test_spinners_serve_ipis_and_are_quiescent(running):
    with running() as s:
        s.does("A", "down_write")
        s.spins("B", "down_write")
        c = s.spins("C", "down_write")
        cpus, system = s.lock.segment.cpus, s.lock.segment.system
        for spinner, index in (("B", 1), ("C", 2)):
            cpus["ipi_request"][index] += 1
            system["rcu_gp"] += 1
            next(x for x in s.cpus if x.name.startswith(spinner)).takes_steps(60)
            assert cpus["ipi_done"][index] == cpus["ipi_request"][index]
            assert cpus["rcu_qs"][index] == system["rcu_gp"]
        assert not c.done
