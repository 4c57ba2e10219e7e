# SPDX-License-Identifier: MIT
"""Look for a broken promise on the stepped engine, where it can be repeated, and shrink it.

An attempt puts the segment into a state by operations one after another (the prefix), then steps a
few operations of several CPUs in turns.  A turn ends at a site where races are decided, or where
the CPU waits.  What breaks the promise is shrunk: fewer operations before, fewer CPUs, fewer turns,
as long as the same promise still breaks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spfemu.checks import check_segment
from spfemu.engines.plain import KernelPanic
from spfemu.engines.points import ScriptError
from spfemu.engines.script import Script
from spfemu.engines.stepped import Fiber, FiberState, StepEngine, StuckError
from spfemu.engines.steps import Step
from spfemu.measure import build
from spfemu.measure.plan import Plan
from spfemu.measure.workers import Workers
from spfemu.mm.kthread import Role
from spfemu.segment import Segment
from spfemu.stress.delays import focus_sites
from spfemu.stress.isolation import DiedError, in_child
from spfemu.stress.promises import Promise
from spfemu.stress.quarantine import set_quarantine
from spfemu.stress.verdict import Violation, of_checks, of_failure, of_panic
from spfemu.workloads.parameters import STRESS

FOR_TIME = ("delays", "history", "yielding")
"""Oracles that have no meaning where time is counted in steps."""
ENTRY_POINTS = ("worker_setup", "worker_exit", "stress_operations")
MOST_OPERATIONS = {Role.WORKER: 16, Role.WRITER: 6}
"""Operations that are stepped: many faults meet few calls."""
OTHER_TURNS = 6
PREFIX_MAX = 60
"""Operations of each CPU before those that are stepped."""
PARK_STEPS = 700
"""Steps of a CPU at most on its way to the site where it is parked: one that does not pass there
would do all its operations, and meet nobody."""
STEPS_MAX = 400_000
TURNS_MAX = 4000
CYCLES_PER_SECOND = 1e9
"""Of a clock that counts steps."""
HISTORY_STEPS = 40
COMPILE_SECONDS = 120.0

Turn = tuple[int, int]
"""A CPU and the steps that it takes; -1 ends its sleep by its time limit."""


@dataclass(frozen=True)
class Attempt:
    """Operations and turns: enough to do the same again.

    `prefix` and `operations` are numbers of operations by CPU, `streams` the states of the CPUs'
    random generators when the stepped operations begin.
    """

    seed: int
    prefix: tuple[int, ...]
    operations: tuple[int, ...]
    streams: tuple[int, ...]
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Reproduced:
    """A violation on the stepped engine, with its shortest attempt and the last steps of it."""

    attempt: Attempt
    violation: Violation
    history: str
    attempts: int

    def schedule(self) -> str:
        """Return the turns as text: ``A120 B7 A3``."""
        return " ".join(
            f"{_name(cpu)}{'~' if steps < 0 else steps}" for cpu, steps in self.attempt.turns
        )


def reproduce(plan: Plan, promise: Promise, seconds: float) -> Reproduced | None:
    """Try for so long to break `promise` in steps; None if that does not come about.

    A kernel that is broken may write anywhere: see `reproduce_apart`.
    """
    stepper = Stepper(plan)
    try:
        return stepper.search(promise, seconds)
    finally:
        stepper.segment.close()


def reproduce_apart(plan: Plan, promise: Promise, seconds: float) -> Reproduced | None:
    """Do that in a process of its own; None also if that dies."""
    try:
        found: Reproduced | None = in_child(
            lambda: reproduce(plan, promise, seconds), seconds + COMPILE_SECONDS
        )
    except DiedError:
        return None
    return found


class Stepper:
    """The stress mix on the stepped engine."""

    def __init__(self, plan: Plan) -> None:
        self.plan = replace(plan, swap=0, khugepaged=False)
        program = build.compose(
            STRESS,
            plan.protocol,
            config=self.plan.config,
            overrides=plan.overrides,
            oracles=[o for o in build.oracles() if o.__name__.rpartition(".")[2] not in FOR_TIME],
            entry_points=ENTRY_POINTS,
        )
        self.engine = StepEngine(program)
        self.focus = sorted(set(focus_sites(program, self.engine.sites)))
        self.segment = Segment.create(self.plan.geometry)
        self.attempts = 0

    def search(self, promise: Promise, seconds: float) -> Reproduced | None:
        """Try random attempts, then shrink the first one that breaks the promise."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            attempt = self.draw(self.plan.seed + self.attempts)
            found, turns = self.run(attempt, promise, random.Random(attempt.seed))
            if found is not None:
                return self._shrunk(replace(attempt, turns=turns), found, promise, end)
        return None

    def draw(self, seed: int) -> Attempt:
        """Draw operations, and how many come before; no turns yet."""
        chance = random.Random(seed)
        cpus = range(self.plan.nr_cpus)
        return Attempt(
            seed,
            tuple(chance.randrange(PREFIX_MAX) for _ in cpus),
            tuple(chance.randint(1, MOST_OPERATIONS[self.plan.role(i)]) for i in cpus),
            tuple(chance.getrandbits(61) | 1 for _ in cpus),
        )

    def run(
        self, attempt: Attempt, promise: Promise, chance: random.Random | None = None
    ) -> tuple[Violation | None, tuple[Turn, ...]]:
        """Make an attempt: its own turns, or such as `chance` draws; what broke, and the turns.

        Violations of other promises end it and are not returned.
        """
        self.attempts += 1
        turns: list[Turn] = []
        fibers: list[Fiber] = []
        try:
            self._begin(attempt)
            fibers = [
                self.engine.spawn("stress_operations", self.segment.cpu(i), count)
                for i, count in enumerate(attempt.operations)
            ]
            if chance is None:
                chosen = self._take_turns(fibers, attempt.turns)
            else:
                chosen = self._draw_turns(fibers, chance)
            self._step(fibers, chosen, turns)
            found = self._judge(fibers, promise)
        except KernelPanic as panic:
            turns += self._unfinished(fibers, turns)
            found = of_panic(self.segment, panic.code)
        except StuckError as error:
            found = Violation(Promise.PROGRESS, "schedule", f"{error}.")
        finally:
            for fiber in fibers:
                fiber.free()
        return (found if found is not None and found.promise is promise else None), tuple(turns)

    @staticmethod
    def _unfinished(fibers: Sequence[Fiber], turns: Sequence[Turn]) -> list[Turn]:
        """Return the turn that has ended in a panic, which nobody could note."""
        noted = [sum(s for i, s in turns if i == index and s > 0) for index in range(len(fibers))]
        return [(i, f.steps - n) for i, (f, n) in enumerate(zip(fibers, noted, strict=True))
                if f.steps > n]  # fmt: skip

    def _begin(self, attempt: Attempt) -> None:
        """Reach the state in which the stepped operations begin; raises KernelPanic, StuckError."""
        self.segment.reset(attempt.seed)
        set_quarantine(self.segment, attempt.seed)
        Workers(self.plan, self.engine, self.segment, CYCLES_PER_SECOND)
        self.engine.reset_clock()
        for i in range(self.plan.nr_cpus):
            self.engine.call("worker_setup", self.segment.cpu(i))
        for i, count in enumerate(attempt.prefix):
            self.engine.call("stress_operations", self.segment.cpu(i), count)
        self.segment.cpus["random"][: self.plan.nr_cpus] = attempt.streams

    def _draw_turns(self, fibers: Sequence[Fiber], chance: random.Random) -> Iterator[Turn]:
        """Let CPUs go on in turns.

        One runs up to a site where races are decided, or some way if it does not pass there, and
        stays there while others go on for some turns, each until it waits or has done a few hundred
        steps.
        """
        while True:
            ready = [i for i, fiber in enumerate(fibers) if fiber.ready]
            if not ready:
                return
            parked = chance.choice(ready)
            most = chance.randint(1, PARK_STEPS)
            yield parked, self._run(fibers[parked], -1, chance.choice(self.focus), most)
            others = [i for i in ready if i != parked]
            for _ in range(chance.randint(1, OTHER_TURNS) if others else 0):
                index = chance.choice(others)
                if fibers[index].ready:
                    steps = STEPS_MAX if chance.random() < 0.5 else chance.randint(1, 400)
                    yield index, self._run(fibers[index], Step.RELAX, -1, steps)

    @staticmethod
    def _run(fiber: Fiber, kind: int, site: int, most: int = STEPS_MAX) -> int:
        """Let a fiber run to a kind of step or a site; returns the steps that it took."""
        before = fiber.steps
        fiber.run(most, kind, site)
        return fiber.steps - before

    def _step(self, fibers: Sequence[Fiber], chosen: Iterator[Turn], turns: list[Turn]) -> None:
        """Take turns until all have ended; `turns` gets those that were taken."""
        for turn in chosen:
            turns.append(turn)
            if len(turns) > TURNS_MAX:
                raise StuckError("the CPUs take turns for ever")
        self._finish(fibers, turns)

    def _take_turns(self, fibers: Sequence[Fiber], turns: Sequence[Turn]) -> Iterator[Turn]:
        """Take the turns of an attempt as far as they are possible; yields those."""
        for index, steps in turns:
            before = fibers[index].steps
            if self._take(fibers[index], steps):
                yield index, steps if steps < 0 else fibers[index].steps - before

    @staticmethod
    def _take(fiber: Fiber, steps: int) -> bool:
        """Take steps, or end a sleep; False if the fiber is not where it can."""
        if steps < 0:
            return fiber.time_out()
        if not fiber.ready:
            return False
        fiber.run(steps)
        return True

    def _finish(self, fibers: Sequence[Fiber], turns: list[Turn]) -> None:
        """Let each in turn run until it waits, until all have ended; raises StuckError."""
        while any(fiber.state is not FiberState.DONE for fiber in fibers):
            moved = False
            for index, fiber in enumerate(fibers):
                before = fiber.steps
                if fiber.ready:
                    fiber.run(STEPS_MAX, Step.RELAX)
                    turns.append((index, fiber.steps - before))
                    moved = True
            if not moved and not any(self._time_out(i, f, turns) for i, f in enumerate(fibers)):
                raise StuckError("all CPUs sleep and nobody is left to wake them")
            if len(turns) > TURNS_MAX:
                raise StuckError("the CPUs take turns for ever")

    @staticmethod
    def _time_out(index: int, fiber: Fiber, turns: list[Turn]) -> bool:
        if fiber.state is not FiberState.WAITING or not fiber.time_out():
            return False
        turns.append((index, -1))
        return True

    def _judge(self, fibers: Sequence[Fiber], promise: Promise) -> Violation | None:
        for index, fiber in enumerate(fibers):
            result = fiber.result
            if isinstance(result, int) and result < 0:
                self.segment.cpus["failed"][index] = -result
                return of_failure(self.segment, self.plan, index)
        if promise is not Promise.ACCOUNTING:
            return None
        for i in range(self.plan.nr_cpus):
            self.engine.call("worker_exit", self.segment.cpu(i))
        found = check_segment(self.segment)
        return of_checks(found) if found else None

    # shrinking

    def _shrunk(
        self, attempt: Attempt, found: Violation, promise: Promise, end: float
    ) -> Reproduced:
        """Leave out what the violation does not need, as long as the time lasts."""
        smaller = True
        while smaller and time.monotonic() < end:
            smaller = False
            for candidate in _smaller(attempt):
                if time.monotonic() > end:
                    break
                seen, turns = self.run(candidate, promise)
                if seen is not None and _size(replace(candidate, turns=turns)) < _size(attempt):
                    attempt, found = replace(candidate, turns=turns), seen
                    smaller = True
                    break
        return Reproduced(attempt, found, self._history(attempt), self.attempts)

    def _history(self, attempt: Attempt) -> str:
        """Return the last steps of an attempt that breaks a promise as a table."""
        try:
            self._begin(attempt)
        except (KernelPanic, StuckError):
            return ""  # it breaks in what comes before, and nothing needs to be stepped
        with Script(self.engine, self.segment) as script:
            cpus = [
                script.cpu(_name(i), "stress_operations", self.segment.cpu(i), count)
                for i, count in enumerate(attempt.operations)
            ]
            try:
                for index, steps in attempt.turns:
                    if steps < 0:
                        cpus[index].times_out()
                    else:
                        cpus[index].takes_steps(steps)
            except (KernelPanic, ScriptError):
                # it ends where the violation is
                return script.history(HISTORY_STEPS)
            return script.history(HISTORY_STEPS)


def _name(index: int) -> str:
    return chr(ord("A") + index % 26) * (1 + index // 26)


def _size(attempt: Attempt) -> tuple[int, int, int, int]:
    """How much there is to read: operations, turns, operations before, steps."""
    steps = sum(max(steps, 1) for _, steps in attempt.turns)
    return sum(attempt.operations), len(attempt.turns), sum(attempt.prefix), steps


def _smaller(attempt: Attempt) -> Iterator[Attempt]:
    """Yield attempts that leave something out."""
    for i, count in enumerate(attempt.operations):
        for fewer in {0, count - 1} if count else ():
            yield replace(attempt, operations=_with(attempt.operations, i, fewer))
    for size in (16, 4, 1):
        for first in range(0, len(attempt.turns), size):
            rest = attempt.turns[:first] + attempt.turns[first + size :]
            yield replace(attempt, turns=_merged(rest))
    for i, count in enumerate(attempt.prefix):
        for fewer in {0, count // 2, count - 1} if count else ():
            yield replace(attempt, prefix=_with(attempt.prefix, i, fewer))


def _with(numbers: tuple[int, ...], index: int, number: int) -> tuple[int, ...]:
    return (*numbers[:index], number, *numbers[index + 1 :])


def _merged(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Join turns of one CPU that follow each other."""
    merged: list[Turn] = []
    for index, steps in turns:
        if merged and merged[-1][0] == index and steps >= 0 and merged[-1][1] >= 0:
            merged[-1] = index, merged[-1][1] + steps
        else:
            merged.append((index, steps))
    return tuple(merged)
