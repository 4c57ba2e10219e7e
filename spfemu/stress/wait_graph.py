# SPDX-License-Identifier: MIT
"""Who waits for whom, from what the oracles `waits` and `lock_order` note in a segment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spfemu import shims
from spfemu.layout import HELD_WORDS, STRESS_CPU
from spfemu.measure.plan import Plan
from spfemu.mm.irq import CpuState
from spfemu.segment import Segment
from spfemu.stress.lock_class import LockClass
from spfemu.stress.lock_fault import lock_name

_NOTED = (*range(LockClass.I_RWSEM, LockClass.I_MMAP + 1), LockClass.MM_RB_LOCK)
"""Classes whose holders are in their own lists only; a spinlock holds the number of its holder."""


@dataclass(frozen=True)
class Wait:
    """What a CPU waits for; `number` is that of the wait, `holders` all have to let go."""

    number: int
    kind: int
    on: int
    holders: tuple[int, ...]


def wait_graph(segment: Segment, plan: Plan) -> dict[int, Wait]:
    """Return the waits of all CPUs that wait; CPUs that run may have gone on meanwhile."""
    found = {}
    for cpu in range(plan.nr_cpus):
        number, kind, on = _note(segment, cpu)
        if kind:
            found[cpu] = Wait(number, kind, on, _holders(segment, plan, cpu, kind, on))
    return found


def _note(segment: Segment, cpu: int) -> tuple[int, int, int]:
    """Return number, class and object of a CPU's wait; the class is 0 if it waits for nothing.

    Or if the note is just being written: the acquires pair with the order in `waits.set_wait`.
    """
    own = segment.address["stress_cpus"] + cpu * STRESS_CPU.SIZE
    load = shims.load().spf_smp_load_acquire
    number = load(own + STRESS_CPU.wait_number)
    kind, on = load(own + STRESS_CPU.wait_class), load(own + STRESS_CPU.wait_on)
    if number == 0 or load(own + STRESS_CPU.wait_number) != number:
        return 0, 0, 0
    return number, kind, on


def _holders(segment: Segment, plan: Plan, cpu: int, kind: int, on: int) -> tuple[int, ...]:
    cpus = segment.cpus
    if kind == LockClass.MONITOR:
        return ()
    if kind == LockClass.IRQS_OFF:
        target = (on - segment.cpu(0)) // cpus.dtype.itemsize
        return (target,) if cpus["ipi_request"][target] != cpus["ipi_done"][target] else ()
    if kind == LockClass.RCU:
        inside = cpus["rcu_qs"] < int(segment.system["rcu_gp"])
        running = cpus["state"] == CpuState.RUNNING
        return tuple(int(i) for i in np.flatnonzero(inside & running) if i != cpu)
    if kind in _NOTED:
        return tuple(i for i in range(plan.nr_cpus) if on in held_by(segment, i))
    holder = segment.word(on) - 1
    return (holder,) if 0 <= holder < plan.nr_cpus else ()


def held_by(segment: Segment, cpu: int) -> list[int]:
    """Addresses of the locks that a CPU holds."""
    own = segment.stress_cpus[cpu]
    held: list[int] = own["held"].reshape(-1, HELD_WORDS)[: int(own["nr_held"]), 0].tolist()
    return held


def find_cycles(graph: dict[int, Wait]) -> list[tuple[int, ...]]:
    """Return the cycles of a graph that the first holders found on the way lead to, once each."""
    found = set()
    for start in graph:
        path = _path_back(graph, start)
        if path:
            least = path.index(min(path))
            found.add((*path[least:], *path[:least]))
    return sorted(found)


def _path_back(graph: dict[int, Wait], start: int) -> list[int]:
    """Return the CPUs of a cycle through `start`; empty if there is none."""
    came_from: dict[int, int] = {}
    pending = [start]
    while pending:
        cpu = pending.pop(0)
        for holder in graph[cpu].holders if cpu in graph else ():
            if holder == start:
                path = [cpu]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if holder not in came_from:
                came_from[holder] = cpu
                pending.append(holder)
    return []


def cpu_name(plan: Plan, cpu: int) -> str:
    """Name a CPU and what it runs."""
    return f"CPU {cpu} ({plan.role(cpu).name.lower()})"


def describe_cycle(
    segment: Segment, plan: Plan, graph: dict[int, Wait], cycle: tuple[int, ...]
) -> str:
    """Say in one sentence, without its full stop, who waits for whom."""
    text = cpu_name(plan, cycle[0])
    joint = " waits for "
    for cpu, holder in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
        text += joint + _link(segment, plan, graph[cpu], holder)
        joint = ", which waits for "
        if graph[cpu].kind == LockClass.IRQS_OFF and int(segment.cpus["irqs_disabled"][holder]):
            text += ", which has interrupts off"
            joint = " and waits for "
    return text


def describe_wait(segment: Segment, plan: Plan, cpu: int, wait: Wait, holder: int) -> str:
    """Say who waits for whom, without a full stop."""
    return f"{cpu_name(plan, cpu)} waits for {_link(segment, plan, wait, holder)}"


def _link(segment: Segment, plan: Plan, wait: Wait, holder: int) -> str:
    name = cpu_name(plan, holder)
    if wait.kind == LockClass.IRQS_OFF:
        return f"{name} to take an IPI"
    if wait.kind == LockClass.RCU:
        return f"{name} to be quiescent for RCU"
    return f"{lock_name(segment, wait.kind, wait.on)}, held by {name}"
