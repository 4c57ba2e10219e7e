# SPDX-License-Identifier: MIT
"""The rw_semaphore: who may be inside, who gets it next, and that every wait ends.

Each question is asked of real processes (memory order, futexes, time) and of random and scripted
interleavings of the stepped engine (repeatable, and a wait that cannot end is seen at once).
Broken variants, named broken_*, show that the checks can fail.
"""

import sys

import lock_storm
import pytest
from lock_storm import Data
from mm_machine import Layer, Machine, core_layer, engine_of, expect_stuck, renamed, seeds

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.script import Script, ScriptCpu, after, before, waits
from spfemu.engines.source import functions_of, link
from spfemu.engines.stepped import FiberState, StepEngine, StuckError
from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, RWSEM, RWSEM_WAITER
from spfemu.mm import osq, rwsem, rwsem_spin, rwsem_waiters, rwsem_words
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Errno
from spfemu.mm.irq import CpuState
from spfemu.mm.rwsem import WriteTry, rwsem_down_write_slowpath, rwsem_try_write_lock
from spfemu.mm.rwsem_waiters import TaskWord, rwsem_del_waiter
from spfemu.mm.rwsem_words import (
    RWSEM_FLAG_HANDOFF,
    RWSEM_FLAG_WAITERS,
    RWSEM_LOCK_MASK,
    RWSEM_READER_BIAS,
    RWSEM_READER_OWNED,
    RWSEM_WRITER_LOCKED,
    rwsem_set_owner,
    rwsem_set_reader_owned,
)
from spfemu.mm.sched import cpu_sleep
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import (
    atomic_fetch_add_acquire,
    atomic_fetch_add_release,
    atomic_fetch_and,
    cmpxchg_acquire,
    futex_wake,
    load,
    read_once,
    write_once,
)
from spfemu.segment import Segment

STORM = functions_of(lock_storm)
SHORT_TICK = 20_000
"""Cycles: short enough for handoff, long enough for a spin to be worth it."""


# Broken variants


@kernel
def broken_up_write_forgets(cpu: int, sem: int) -> None:
    """Release without waking anybody."""
    write_once(sem + RWSEM.owner, 0)
    atomic_fetch_add_release(sem + RWSEM.count, -RWSEM_WRITER_LOCKED)


@kernel
def broken_down_write_ignores_readers(cpu: int, sem: int) -> None:
    """Take the lock although readers have it."""
    count = read_once(sem + RWSEM.count) & ~RWSEM_WRITER_LOCKED
    if cmpxchg_acquire(sem + RWSEM.count, count, count | RWSEM_WRITER_LOCKED) != count:
        rwsem_down_write_slowpath(cpu, sem, 0)
    else:
        rwsem_set_owner(cpu, sem)


@kernel
def broken_down_read_trylock_overtakes(cpu: int, sem: int) -> int:
    """Read although somebody waits."""
    count = atomic_fetch_add_acquire(sem + RWSEM.count, RWSEM_READER_BIAS)
    if count & RWSEM_WRITER_LOCKED == 0:
        return 1
    atomic_fetch_add_release(sem + RWSEM.count, -RWSEM_READER_BIAS)
    return 0


@slowpath
def broken_steal_read_ignores_handoff(cpu: int, sem: int, count: int) -> int:
    """Steal although the lock is promised."""
    if count & RWSEM_WRITER_LOCKED:
        return 0
    rwsem_set_reader_owned(sem, load(cpu + CPU.id) + 1)
    return 1


@slowpath
def broken_send_fatal_signal_keeps_word(target: int) -> None:
    """Wake without changing what the target may be about to sleep on."""
    write_once(target + CPU.fatal_signal, 1)
    futex_wake(target + CPU.waiter + RWSEM_WAITER.task, 1)


@slowpath
def broken_cancel_wait_keeps_wakeup(cpu: int, sem: int) -> int:
    """Leave the queue with the wake-up that was meant for the first of it."""
    waiter = cpu + CPU.waiter
    spin_lock(cpu, sem + RWSEM.wait_lock)
    rwsem_del_waiter(sem, waiter)
    if load(sem + RWSEM.wait_head) == 0:
        atomic_fetch_and(sem + RWSEM.count, ~(RWSEM_FLAG_WAITERS | RWSEM_FLAG_HANDOFF))
    spin_unlock(sem + RWSEM.wait_lock)
    return 1


@slowpath
def broken_wait_for_write_arms_late(cpu: int, sem: int, killable: int) -> int:
    """Arm the futex word after the try, outside wait_lock: a wake-up between is overwritten."""
    task = cpu + CPU.waiter + RWSEM_WAITER.task
    while rwsem_try_write_lock(cpu, sem) != WriteTry.LOCKED:
        spin_unlock(sem + RWSEM.wait_lock)
        write_once(task, TaskWord.WAITING)
        cpu_sleep(cpu, task, TaskWord.WAITING, -1)
        spin_lock(cpu, sem + RWSEM.wait_lock)
    spin_unlock(sem + RWSEM.wait_lock)
    return 0


@slowpath
def broken_osq_unqueue_just_goes(cpu: int, lock: int) -> int:
    """Leave the line without a word to the neighbours."""
    return 0


OWN = functions_of(sys.modules[__name__])


def broken(**names: str) -> Layer:
    """Layer that replaces functions of the lock by broken ones of this module."""
    return renamed(OWN, **names)


FORGETS = broken(up_write="broken_up_write_forgets")
IGNORES_READERS = broken(down_write="broken_down_write_ignores_readers")
OVERTAKES = broken(down_read_trylock="broken_down_read_trylock_overtakes")
IGNORES_HANDOFF = broken(rwsem_steal_read="broken_steal_read_ignores_handoff")
KEEPS_WORD = broken(send_fatal_signal="broken_send_fatal_signal_keeps_word")
KEEPS_WAKEUP = broken(rwsem_cancel_wait="broken_cancel_wait_keeps_wakeup")
ARMS_LATE = broken(rwsem_wait_for_write="broken_wait_for_write_arms_late")
JUST_GOES = broken(osq_unqueue="broken_osq_unqueue_just_goes")


class Lock:
    """One rw_semaphore and the data of lock_storm in a segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.sem = segment.scratch(0)
        self.data = segment.scratch(64)

    def word(self, field: int) -> int:
        """Return a word of the rw_semaphore."""
        return self.segment.word(self.sem + field)

    @property
    def count(self) -> int:
        """The state word."""
        return self.word(RWSEM.count)

    def inside(self, word: Data) -> int:
        """Return a word of the data."""
        return self.segment.word(self.data + word)

    def queue(self) -> list[int]:
        """Indices of the queued CPUs, checked in both directions."""
        forwards = self._walk(RWSEM.wait_head, RWSEM_WAITER.next)
        assert forwards == self._walk(RWSEM.wait_tail, RWSEM_WAITER.prev)[::-1]
        return forwards

    def _walk(self, end: int, link: int) -> list[int]:
        found = []
        waiter = self.word(end)
        while waiter:
            found.append((waiter - CPU.waiter - self.segment.cpu(0)) // CPU.SIZE)
            waiter = self.segment.word(waiter + link)
        return found

    def assert_free(self) -> None:
        """Check that nobody holds or awaits it, nor is in its spin queue."""
        for field in (RWSEM.count, RWSEM.wait_lock, RWSEM.osq):
            assert self.word(field) == 0
        assert self.queue() == []

    def assert_excluded(self, written: int) -> None:
        """Check that nothing that lock_storm noticed went wrong."""
        assert self.inside(Data.VIOLATIONS) == 0
        assert self.inside(Data.FIRST) == self.inside(Data.SECOND) == written


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


class Scene(Script):
    """A script on four CPUs and one lock; A to D are CPUs 0 to 3."""

    def __init__(self, make_segment, *layers: Layer, tick: int = 1 << 40) -> None:
        self.lock = Lock(make_segment(nr_cpus=4))
        self.lock.segment.system["cycles_per_tick"] = tick
        super().__init__(engine_of(StepEngine, *layers), self.lock.segment)
        self._calls = 0

    def runs(self, name: str, function: str) -> ScriptCpu:
        """Add a call of a lock function by CPU `name`."""
        self._calls += 1
        address = self.lock.segment.cpu("ABCD".index(name))
        return self.cpu(name + "_" * self._calls, function, address, self.lock.sem)

    def does(self, name: str, function: str) -> int:
        """Run a call of a lock function by CPU `name` to its end."""
        return self.runs(name, function).runs_to_end()

    def waits(self, name: str, function: str) -> ScriptCpu:
        """Run a call of a lock function until it sleeps in the queue."""
        return self.runs(name, function).runs_until(before("cpu_sleep")).runs_until(waits())

    def spins(self, name: str, function: str) -> ScriptCpu:
        """Run a call of a lock function until it spins."""
        cpu = self.runs(name, function).runs_until(waits())
        assert cpu.state is FiberState.READY
        return cpu

    def loses_patience(self, name: str) -> None:
        """Let the time end after which CPU `name`, queued, asks for handoff."""
        deadline = CPU.waiter + RWSEM_WAITER.deadline
        address = self.lock.segment.cpu("ABCD".index(name)) + deadline
        self.lock.segment.words[(address - self.lock.segment.base) // 8] = 0

    def kills(self, name: str) -> None:
        """Send CPU `name` a fatal signal."""
        self._calls += 1
        target = self.lock.segment.cpu("ABCD".index(name))
        self.cpu("kill" + "_" * self._calls, "send_fatal_signal", target).runs_to_end()

    def event(self, name: str, event: Event) -> int:
        """Count of an event on CPU `name`."""
        return int(self.lock.segment.cpus["event"]["ABCD".index(name)][event])


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
