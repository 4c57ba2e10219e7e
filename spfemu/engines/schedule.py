# SPDX-License-Identifier: MIT
"""Random interleavings that replay: turns as text, drawn from a seed.

``A3 B12 A~`` lets A take 3 steps, then B 12, and then ends a sleep of A by its time limit.  Under a
weak memory, ``A+`` is a step of A whose store is held back, ``A?2`` one whose load has the value
from two changes ago, and ``A!1`` makes the second store of A's buffer visible.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from spfemu.engines.plain import KernelPanic
from spfemu.engines.points import ScriptError
from spfemu.engines.stepped import FiberState, StuckError

if TYPE_CHECKING:
    from spfemu.engines.script import Script, ScriptCpu

BUFFER_MAX = 24
"""Stores in a buffer from which on one becomes visible before each step of its CPU."""


class RandomScheduler:
    """Runs the CPUs of a script to their ends in an order that a seed decides.

    After every step another CPU goes on with a probability that the seed decides too (between
    1/2 and 1/256): some seeds switch all the time, others only a few times.  So it is with how
    often stores are held back and become visible, and how often loads are early.
    """

    def __init__(self, script: Script, seed: int) -> None:
        self.script = script
        self._choose = random.Random(seed)
        self._switch = self._rare(8)
        self._turns: list[tuple[str, int | str]] = []
        if script.weak:
            self._show = self._rare(6)
            self._weaken(self._rare(4), self._rare(4))

    def _rare(self, most: int) -> float:
        return float(2.0 ** -self._choose.uniform(1, most))

    def _weaken(self, hold: float, early: float) -> None:
        """Let stores be held back and loads be early with these probabilities."""
        chance = self._choose

        def pick(_address: int, back: int) -> int:
            return chance.randint(1, back) if chance.random() < early else 0

        for cpu in self.script.cpus:
            cpu.view.hold = lambda _address: chance.random() < hold
            cpu.view.pick = pick

    def run(self) -> str:
        """Run; returns the schedule for `replay`.

        Raises StuckError if no CPU can go on or the script's `steps_max` steps are not enough,
        KernelPanic if a kernel assertion fails, with the schedule as a note.
        """
        try:
            self._run()
        except (KernelPanic, StuckError) as error:
            error.add_note(f"schedule: {self.schedule()}")
            raise
        return self.schedule()

    def schedule(self) -> str:
        """Return the turns so far as text."""
        return " ".join(f"{name}{what}" for name, what in self._turns)

    def _run(self) -> None:
        current = None
        for _ in range(self.script.steps_max):
            ready = [c for c in self.script.cpus if c.fiber.ready]
            if not ready:
                if not self._time_out_one():
                    return
                continue
            if current not in ready or self._choose.random() < self._switch:
                current = self._choose.choice(ready)
            if self.script.weak:
                self._show_some(ready)
            self._step(current)
        raise StuckError(f"{self.script.steps_max} steps are not enough: {self.script.where()}")

    def _step(self, cpu: ScriptCpu) -> None:
        try:
            cpu.advance()
        finally:
            self._count_step(cpu.name, cpu.view.note if self.script.weak else "")

    def _count_step(self, name: str, note: str) -> None:
        last, count = self._turns[-1] if self._turns else ("", "")
        if not note and last == name and isinstance(count, int):
            self._turns[-1] = name, count + 1
        else:
            self._turns.append((name, note or 1))

    def _show_some(self, cpus: list[ScriptCpu]) -> None:
        """Let a store of a buffer become visible now and then, and always if it is full."""
        cpu = self._choose.choice(cpus)
        buffer = cpu.view.buffer
        if not buffer or (len(buffer) < BUFFER_MAX and self._choose.random() > self._show):
            return
        index = self._choose.choice([i for i in range(len(buffer)) if cpu.view.may_show(i)])
        self._turns.append((cpu.name, f"!{index}"))
        cpu.view.show(index)

    def _time_out_one(self) -> bool:
        """Nobody is ready: end one sleep with a time limit; False if all have ended."""
        asleep = [c for c in self.script.cpus if c.state is FiberState.WAITING]
        if not asleep:
            return False
        for cpu in self._choose.sample(asleep, len(asleep)):
            if cpu.fiber.time_out():
                self._turns.append((cpu.name, "~"))
                return True
        raise StuckError(f"deadlock: {self.script.where()}")


def replay(script: Script, schedule: str) -> None:
    """Take the steps of a schedule as `RandomScheduler.run` returned it.

    Raises ScriptError if the schedule does not fit the script's CPUs and memory.
    """
    cpus = {c.name: c for c in script.cpus}
    for turn in schedule.split():
        match = re.fullmatch(r"([A-Za-z_]+)(~|\+|[!?]?\d+)", turn)
        if match is None or match[1] not in cpus:
            raise ScriptError(f"'{turn}' is no turn of {', '.join(cpus)}")
        _take_turn(cpus[match[1]], match[2])


def _take_turn(cpu: ScriptCpu, what: str) -> None:
    if what == "~":
        cpu.times_out()
    elif what[0] == "!":
        cpu.view.show(int(what[1:]))
    elif what == "+":
        _take_weak_step(cpu, hold=True, back=0)
    elif what[0] == "?":
        _take_weak_step(cpu, hold=False, back=int(what[1:]))
    else:
        cpu.takes_steps(int(what))


def _take_weak_step(cpu: ScriptCpu, *, hold: bool, back: int) -> None:
    view = cpu.view
    before = view.hold, view.pick
    view.hold, view.pick = lambda _address: hold, lambda _address, most: min(back, most)
    cpu.takes_steps(1)
    view.hold, view.pick = before
