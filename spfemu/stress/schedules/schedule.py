# SPDX-License-Identifier: MIT
"""What a schedule is, and playing one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from spfemu.checks import check_segment
from spfemu.engines.plain import KernelPanic
from spfemu.engines.script import Point, ScriptCpu, ScriptError, ScriptStuckError, waits
from spfemu.engines.stepped import StepEngine, StuckError
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.process import Process, Threads

PROCESS = Geometry(nr_cpus=3, nr_spare_mms=2)
"""What most schedules need: three threads, and room for a child or two."""
STEPS_MAX = 60_000
"""Steps of one random order; none of a working kernel comes near."""


class BrokenError(Exception):
    """A result that the kernel must not give; the message says which and what would be right."""


@dataclass(frozen=True)
class Schedule:
    """A play: `play` raises BrokenError; `random` if each seed is another order of steps."""

    name: str
    play: Callable[[Process, int], None]
    random: bool
    geometry: Geometry
    process: type[Process]
    config: Mapping[str, int] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What it plays, in one line."""
        return (self.play.__doc__ or "").strip().splitlines()[0]


def schedule(
    geometry: Geometry = PROCESS,
    process: type[Process] = Process,
    *,
    random: bool = False,
    **config: int,
) -> Callable[[Callable[..., None]], Schedule]:
    """Make a schedule of a function; `config` are build options of the kernel that it needs."""

    def make(play: Callable[..., None]) -> Schedule:
        return Schedule(play.__name__, play, random, geometry, process, config)

    return make


def random_orders(
    geometry: Geometry = PROCESS, process: type[Process] = Process, **config: int
) -> Callable[[Callable[..., None]], Schedule]:
    """Make a schedule of a function that plays a random order for each seed."""
    return schedule(geometry, process, random=True, **config)


def expect(name: str, found: object, *right: object) -> None:
    """Raise BrokenError unless `found` is one of `right`."""
    if found not in right:
        raise BrokenError(f"{name} is {found}, not {' or '.join(map(str, right))}")


def runs_randomly(process: Process, seed: int, *calls: tuple[object, ...]) -> list[object]:
    """Let threads make calls, (name, function, arguments...) each, in a random order; results."""
    with Threads(process, steps_max=STEPS_MAX) as threads:
        cpus = [threads.thread(*call) for call in calls]  # type: ignore[arg-type]
        threads.runs_randomly(seed)
        return [cpu.result for cpu in cpus]


def has_to_wait(cpu: ScriptCpu) -> None:
    """Run a CPU until it waits for another; raises BrokenError if it does not have to."""
    try:
        cpu.runs_until(waits())
    except ScriptError:
        if not cpu.done:
            raise
        raise BrokenError(f"{cpu.name} does not wait: it ends with {cpu.result}") from None


def tries_until(cpu: ScriptCpu, point: Point, *letting: ScriptCpu) -> None:
    """Run a CPU to a point, or to where it ends or has to wait for others than `letting`."""
    try:
        cpu.runs_until(point, letting)
    except ScriptStuckError:
        pass
    except ScriptError:
        if not cpu.done:
            raise


def finish_beside(process: Process, cpu: ScriptCpu) -> None:
    """Run a call to its end beside CPU 0, which is stopped and may have to flush its TLB for that.

    Hardware takes an interrupt between any two instructions, an emulated CPU where it polls.
    """
    try:
        cpu.runs_to_end()
    except ScriptStuckError:
        process.engine.call("irq_poll", process.segment.cpu(0))
        cpu.runs_to_end()


def what_breaks(one: Schedule, process: Process, seed: int) -> str | None:
    """Play once; returns what broke, None if nothing did."""
    process.begin(seed)
    try:
        one.play(process, seed)
    except BrokenError as broken:
        return f"result: {broken}"
    except KernelPanic as panic:
        return f"assertion: {panic}"
    except (StuckError, ScriptStuckError) as stuck:
        return f"progress: {str(stuck).splitlines()[0]}"
    found = check_segment(process.segment)
    return f"invariant: {found[0]}" if found else None


def play(one: Schedule, engine: StepEngine, seconds: float) -> tuple[str | None, int]:
    """Play a schedule, a random one with seed after seed for so long, until something breaks.

    Returns what broke, None if nothing did, and the last seed.
    """
    segment = Segment.create(one.geometry)
    end = time.monotonic() + seconds
    seed = 0
    try:
        process = one.process(engine, segment)
        while True:
            found = what_breaks(one, process, seed)
            if found or not one.random or time.monotonic() >= end:
                return found, seed
            seed += 1
    finally:
        segment.close()
