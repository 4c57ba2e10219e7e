# SPDX-License-Identifier: MIT
"""PROGRESS: every operation ends.  A watchdog that tells why one does not.

It looks at the workers several times a second, and judges by what they have done meanwhile, not by
time alone: a loaded machine may leave a CPU without a core for long.

deadlock
    A cycle in the graph of waits, of the same waits for DEADLOCK_SECONDS, whose CPUs all have spun
    meanwhile or really sleep.  One look would not do: a CPU may have been granted a lock already
    and not have got a core since.
abandoned lock
    A CPU waits for a lock whose holder has left its loop.
lost wakeup
    A CPU sleeps on a futex word that says something else by now, or for a lock that is free, while
    every other CPU has done much since or really sleeps too: nobody is on the way to wake it, not
    even one that has been woken itself and waits for a core.
starvation
    One operation lasts while others have ended by the thousand, and its CPU has not been idle.
livelock
    CPUs run and no operation ends.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spfemu.errors import WorkerHangsError
from spfemu.layout import CPU, RWSEM, RWSEM_WAITER
from spfemu.measure.plan import Plan
from spfemu.measure.topology import read_text
from spfemu.measure.workers import Workers
from spfemu.mm.irq import CpuState
from spfemu.mm.kthread import Role
from spfemu.mm.rwsem_words import RWSEM_LOCK_MASK
from spfemu.segment import Segment
from spfemu.stress.lock_class import LockClass
from spfemu.stress.lock_fault import lock_name
from spfemu.stress.wait_graph import (
    Wait,
    cpu_name,
    describe_cycle,
    describe_wait,
    find_cycles,
    wait_graph,
)

DEADLOCK_SECONDS = 1.0
UNSEEN_SECONDS = 10.0
"""The same for CPUs that leave no sign of running: their loops count nothing."""
LOST_WAKEUP_SECONDS = 2.0
LOST_WAKEUP_STEPS = 1000
"""Steps of another CPU after which it has made the wake-ups that it owed before them."""
STARVATION_SECONDS = 5.0
STARVATION_OPERATIONS = 20_000
STARVATION_STEPS = 10_000
"""Steps that a starving CPU has done itself: it did have a core."""
OVERDUE_SECONDS = 0.5
GAP_SECONDS = 5.0
"""After so long without a look nothing is known any more."""

_NO_LOCKS = (LockClass.RCU, LockClass.MONITOR)


class StuckError(WorkerHangsError):
    """Workers make no progress; `kind` says how."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Watchdog:
    """Looks at the workers of one round; it is called by `Workers` while they run."""

    def __init__(self, segment: Segment, plan: Plan, hang_seconds: float) -> None:
        self.segment = segment
        self.plan = plan
        self.hang_seconds = hang_seconds
        self._looked = 0.0
        self._forget()

    def _forget(self) -> None:
        self._since: dict[Hashable, tuple[float, NDArray[np.int64]]] = {}
        """What has been so in every look since then, and the steps of all CPUs at that time."""
        self._begun: dict[int, tuple[int, float, int, int]] = {}
        """Of each CPU's operation: its number, the time, operations of all, steps of this CPU."""
        self._last: tuple[int, float, NDArray[np.int64]] | None = None

    def __call__(self, workers: Workers) -> None:
        """Look once; raises StuckError."""
        now = time.monotonic()
        if now - self._looked > GAP_SECONDS:
            self._forget()
        self._looked = now
        steps = self._steps()
        graph = wait_graph(self.segment, self.plan)
        before, self._since = self._since, {}
        asleep = [self._asleep(workers, cpu) for cpu in range(self.plan.nr_cpus)]
        self._look_for_deadlocks(now, before, steps, graph, asleep)
        self._look_for_lost_wakeups(now, before, steps, graph, asleep)
        self._look_at_operations(now, steps, graph, asleep)

    def overdue(self) -> bool:
        """Tell whether an operation lasts for so long that it is worth waiting for its end."""
        now = time.monotonic()
        return any(now - begun[1] > OVERDUE_SECONDS for begun in self._begun.values())

    def _steps(self) -> NDArray[np.int64]:
        """One number per CPU that grows while it runs, in a waiting loop too."""
        own = self.segment.stress_cpus[: self.plan.nr_cpus]
        steps: NDArray[np.int64] = own["nr_history"] + own["relaxes"]
        return steps

    def _asleep(self, workers: Workers, cpu: int) -> bool:
        """Tell whether the real kernel has its thread asleep, not just without a core."""
        process, thread = workers.threads[cpu]
        stat = read_text(Path(f"/proc/{process}/task/{thread}/stat")) or ""
        return stat.rpartition(")")[2].split()[:1] == ["S"]

    def _lasting(
        self,
        what: Hashable,
        now: float,
        before: dict[Hashable, tuple[float, NDArray[np.int64]]],
        steps: NDArray[np.int64],
    ) -> tuple[float, NDArray[np.int64]]:
        """Note that something is so; returns for how long, and the steps since then."""
        begun, at = self._since.setdefault(what, before.get(what, (now, steps)))
        return now - begun, steps - at

    def _look_for_deadlocks(
        self,
        now: float,
        before: dict[Hashable, tuple[float, NDArray[np.int64]]],
        steps: NDArray[np.int64],
        graph: dict[int, Wait],
        asleep: list[bool],
    ) -> None:
        for cpu, holder in ((i, j) for i, wait in graph.items() for j in wait.holders):
            if self.segment.cpus["state"][holder] == CpuState.OFFLINE:
                seconds, moved = self._lasting((cpu, graph[cpu], holder), now, before, steps)
                if seconds >= DEADLOCK_SECONDS and (moved[cpu] or asleep[cpu]):
                    text = describe_wait(self.segment, self.plan, cpu, graph[cpu], holder)
                    raise StuckError("abandoned lock", f"{text}, which has done its last operation")
        for cycle in find_cycles(graph):
            waits = tuple((cpu, graph[cpu]) for cpu in cycle)
            seconds, moved = self._lasting(waits, now, before, steps)
            seen = all(moved[cpu] or asleep[cpu] for cpu in cycle)
            if seconds >= (DEADLOCK_SECONDS if seen else UNSEEN_SECONDS):
                text = describe_cycle(self.segment, self.plan, graph, cycle)
                raise StuckError("deadlock", text)

    def _look_for_lost_wakeups(
        self,
        now: float,
        before: dict[Hashable, tuple[float, NDArray[np.int64]]],
        steps: NDArray[np.int64],
        graph: dict[int, Wait],
        asleep: list[bool],
    ) -> None:
        own = self.segment.stress_cpus
        for cpu in range(self.plan.nr_cpus):
            if not asleep[cpu] or not own["sleep_on"][cpu] or not self._should_wake(cpu, graph):
                continue
            seconds, moved = self._lasting((cpu, int(steps[cpu])), now, before, steps)
            state = self.segment.cpus["state"]
            others = [i for i in range(self.plan.nr_cpus) if i != cpu]
            known = all(
                moved[i] >= LOST_WAKEUP_STEPS or asleep[i] or state[i] == CpuState.OFFLINE
                for i in others
            )
            if seconds >= LOST_WAKEUP_SECONDS and known:
                raise StuckError("lost wakeup", self._lost_wakeup(cpu, graph))

    def _should_wake(self, cpu: int, graph: dict[int, Wait]) -> bool:
        """Tell whether a sleeper's word has changed, or its rw_semaphore is free."""
        own = self.segment.stress_cpus[cpu]
        word = int(own["sleep_on"])
        if not word:
            return False
        if (self.segment.word(word) ^ int(own["sleep_value"])) & 0xFFFFFFFF:
            return True
        queued = word == self.segment.cpu(cpu) + CPU.waiter + RWSEM_WAITER.task
        wait = graph.get(cpu)
        # a wait for RCU, begun since the sleep was noted, and one for a monitor have no lock
        if not queued or wait is None or wait.holders or wait.kind in _NO_LOCKS:
            return False
        return not self.segment.word(wait.on + RWSEM.count) & RWSEM_LOCK_MASK

    def _lost_wakeup(self, cpu: int, graph: dict[int, Wait]) -> str:
        text = f"{cpu_name(self.plan, cpu)} sleeps and nobody wakes it"
        if cpu in graph:
            lock = lock_name(self.segment, graph[cpu].kind, graph[cpu].on)
            text += f", although what it waits for, {lock}, has been given to it or is free"
        return text

    def _look_at_operations(
        self, now: float, steps: NDArray[np.int64], graph: dict[int, Wait], asleep: list[bool]
    ) -> None:
        cpus = self.segment.cpus[: self.plan.nr_cpus]
        total = int(cpus["operations"].sum())
        running = [
            i
            for i in range(self.plan.nr_cpus)
            if self.plan.role(i) <= Role.WRITER and cpus["state"][i] != CpuState.OFFLINE
        ]
        self._begun = {i: begun for i, begun in self._begun.items() if i in running}
        for cpu in running:
            number = int(cpus["operations"][cpu])
            if self._begun.get(cpu, (-1,))[0] != number:
                self._begun[cpu] = (number, now, total, int(steps[cpu]))
            _, begun, then, own = self._begun[cpu]
            busy = steps[cpu] - own >= STARVATION_STEPS or asleep[cpu]
            others = total - then
            if now - begun >= STARVATION_SECONDS and others >= STARVATION_OPERATIONS and busy:
                name = cpu_name(self.plan, cpu)
                text = f"An operation of {name} has lasted for {now - begun:.1f} s, while others "
                text += f"have finished {others:,}"
                if cpu in graph:
                    lock = lock_name(self.segment, graph[cpu].kind, graph[cpu].on)
                    text += f"; it {'sleeps' if asleep[cpu] else 'spins'} for {lock}"
                raise StuckError("starvation", text)
        if self._last is None or self._last[0] != total or not running:
            self._last = (total, now, steps)
        elif now - self._last[1] >= self.hang_seconds and (steps != self._last[2]).any():
            raise StuckError(
                "livelock",
                f"CPUs run, and no operation has ended for {now - self._last[1]:.1f} s",
            )
