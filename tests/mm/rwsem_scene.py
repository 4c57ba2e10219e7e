# SPDX-License-Identifier: MIT
"""What the tests of the rw_semaphore share: a lock, scripts of it, broken variants.

These, named broken_*, show that the checks can fail.
"""

import sys

from lock_storm import Data
from mm_machine import Layer, engine_of, renamed

from spfemu.engines.script import Script, ScriptCpu, before, waits
from spfemu.engines.source import functions_of
from spfemu.engines.stepped import FiberState, StepEngine
from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, RWSEM, RWSEM_WAITER
from spfemu.mm.rwsem import WriteTry, rwsem_down_write_slowpath, rwsem_try_write_lock
from spfemu.mm.rwsem_waiters import TaskWord, rwsem_del_waiter
from spfemu.mm.rwsem_words import (
    RWSEM_FLAG_HANDOFF,
    RWSEM_FLAG_WAITERS,
    RWSEM_READER_BIAS,
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
