# SPDX-License-Identifier: MIT
"""Random interleavings that replay: turns as text, drawn from a seed.

``A3 B12 A~`` lets A take 3 steps, then B 12, and then ends a sleep of A by its time limit.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from spfemu.engines.plain import KernelPanic
from spfemu.engines.points import ScriptError
from spfemu.engines.stepped import FiberState, StuckError

if TYPE_CHECKING:
    from spfemu.engines.script import Script


class RandomScheduler:
    """Runs the CPUs of a script to their ends in an order that a seed decides.

    After every step another CPU goes on with a probability that the seed decides too (between
    1/2 and 1/256): some seeds switch all the time, others only a few times.
    """

    def __init__(self, script: Script, seed: int) -> None:
        self.script = script
        self._choose = random.Random(seed)
        self._switch = 2.0 ** -self._choose.uniform(1, 8)
        self._turns: list[tuple[str, int]] = []

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
        return " ".join(f"{name}{count or '~'}" for name, count in self._turns)

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
            self._count_step(current.name)
            current.advance()
        raise StuckError(f"{self.script.steps_max} steps are not enough: {self.script.where()}")

    def _count_step(self, name: str) -> None:
        if self._turns and self._turns[-1][0] == name and self._turns[-1][1]:
            self._turns[-1] = name, self._turns[-1][1] + 1
        else:
            self._turns.append((name, 1))

    def _time_out_one(self) -> bool:
        """Nobody is ready: end one sleep with a time limit; False if all have ended."""
        asleep = [c for c in self.script.cpus if c.state is FiberState.WAITING]
        if not asleep:
            return False
        for cpu in self._choose.sample(asleep, len(asleep)):
            if cpu.fiber.time_out():
                self._turns.append((cpu.name, 0))
                return True
        raise StuckError(f"deadlock: {self.script.where()}")


def replay(script: Script, schedule: str) -> None:
    """Take the steps of a schedule as `RandomScheduler.run` returned it.

    Raises ScriptError if the schedule does not fit the script's CPUs.
    """
    cpus = {c.name: c for c in script.cpus}
    for turn in schedule.split():
        match = re.fullmatch(r"([A-Za-z_]+)(\d+|~)", turn)
        if match is None or match[1] not in cpus:
            raise ScriptError(f"'{turn}' is no turn of {', '.join(cpus)}")
        if match[2] == "~":
            cpus[match[1]].times_out()
        else:
            cpus[match[1]].takes_steps(int(match[2]))
