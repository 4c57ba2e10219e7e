# SPDX-License-Identifier: MIT
"""Scripted interleavings: a test says in one sentence who does what, and when the other goes on.

::

    with Script(engine, segment) as s:
        a = s.cpu("A", "user_write", segment.cpu(0), address, 7)
        b = s.cpu("B", "sys_munmap", segment.cpu(1), address, length)
        a.runs_until(after("mmap_seq_read_start"))
        b.runs_to_end()
        a.runs_to_end()
        assert a.result == 0

Only the CPU whose turn it is takes steps.  One that waits for another needs ``letting=[other]``:
then the others go on, step by step in turn, until one of them has changed what it waits for.

``Script(..., memory=Memory.WEAK)`` has store buffers and early loads (see weak.py).  They are used
where the script says so::

    b.holds_back(flag)      # from here on B's stores to flag wait, until a barrier or
    b.shows(flag)           # this makes one visible
    a.reads_early(data)     # from here on A's loads of data have the oldest value that they may
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from spfemu.engines.history import SHOWN, Executed, StepTexts
from spfemu.engines.plain import KernelPanic
from spfemu.engines.points import (
    Point,
    ScriptError,
    ScriptStuckError,
    Target,
    after,
    before,
    resolve,
    waits,
)
from spfemu.engines.schedule import RandomScheduler, replay
from spfemu.engines.stepped import FiberState, StepEngine
from spfemu.engines.steps import Step
from spfemu.engines.weak import Memory, WeakCpu, WeakMemory
from spfemu.mm.bug import Bug
from spfemu.segment import Segment

__all__ = [
    "Memory",
    "Point",
    "Script",
    "ScriptCpu",
    "ScriptError",
    "ScriptStuckError",
    "after",
    "before",
    "waits",
]

STEPS_MAX = 1_000_000
"""Steps that one instruction of a script may take, all CPUs together."""
SPIN_ROUNDS = 2
"""Rounds of a waiting loop that read the same as the one before make a CPU spinning."""
SPIN_PATIENCE = 10_000
"""Steps for which a CPU may spin with nobody let to help, for loops that give up by themselves."""
NOTED_STEPS = 40
"""Steps that a failure shows."""

# plain integers: these are compared at every step
_READY, _WAITING, _DONE = map(int, (FiberState.READY, FiberState.WAITING, FiberState.DONE))
_ENTER, _RETURN, _RELAX, _PANIC = map(int, (Step.ENTER, Step.RETURN, Step.RELAX, Step.PANIC))
_READS = frozenset(map(int, (Step.LOAD, Step.RMW)))
_MEMORY = frozenset(map(int, (Step.LOAD, Step.STORE, Step.RMW)))
_VISIBLE_CHANGE = frozenset(map(int, (Step.PAGE, Step.FUTEX_WAIT, Step.FUTEX_WAKE)))


def _peek(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


class ScriptCpu:
    """One CPU of a script: a call of a kernel function that runs as far as it is told to."""

    def __init__(
        self, script: Script, name: str, function: str, arguments: tuple[int, ...]
    ) -> None:
        self.script = script
        self.name = name
        self.fiber = script.engine.spawn(function, *arguments)
        self.index = len(script.cpus)
        self.weak = WeakCpu(script.weak, self._shown) if script.weak else None
        self._frames: list[tuple[str, int]] = []
        self._returned = False
        self._asleep = False
        self._named_stop = False  # the last instruction ended here because this stop was its point
        self._round: list[tuple[int, int]] = []
        self._last_round: list[tuple[int, int]] = []
        self._round_changes = False
        self._spins = 0

    @property
    def state(self) -> FiberState:
        """Whether it can take a step."""
        return self.fiber.state

    @property
    def done(self) -> bool:
        """Whether its function has returned."""
        return self.state is FiberState.DONE

    @property
    def result(self) -> int | tuple[int, ...]:
        """What its function returned; raises ScriptError if it has not."""
        if not self.done:
            raise ScriptError(f"{self.name} has not ended: it is {self.where()}")
        return self.fiber.result

    @property
    def stack(self) -> tuple[str, ...]:
        """Functions that it is in, outermost first."""
        return tuple(name for name, _ in self._frames)

    def where(self) -> str:
        """Say where it is: state, next step, function stack with lines."""
        state = self.state
        if state is FiberState.DONE:
            return f"at its end with result {self.fiber.result}"
        if self.fiber.event is None:
            return f"before {self.fiber.function}"
        how = {FiberState.WAITING: "asleep at", FiberState.PANICKED: "stopped for good at"}
        verb = how.get(state, "spinning before" if self._spins >= SPIN_ROUNDS else "before")
        return f"{verb} {self._next_step()}\n{self._stack_text()}"

    def runs_until(self, point: Point, letting: Sequence[ScriptCpu] = ()) -> ScriptCpu:
        """Run to `point`; the CPUs in `letting` may run while this one waits.

        Raises ScriptError if it does not get there or no such point exists, KernelPanic if a
        kernel assertion fails on the way.
        """
        engine = self.script.engine
        target = resolve(point, engine.program, engine.sites, self.fiber.function)
        self._run(target, letting)
        return self

    def runs_to_end(self, letting: Sequence[ScriptCpu] = ()) -> int | tuple[int, ...]:
        """Run until its function returns; returns the result.  Else as `runs_until`."""
        self._run(None, letting)
        return self.result

    def takes_steps(self, count: int) -> ScriptCpu:
        """Take `count` steps; raises ScriptError if it ends or sleeps before that."""
        for taken in range(count):
            raw = self.fiber.raw
            if raw[0] != _READY or raw[1] == _PANIC:
                raise self._failure(f"takes only {taken} of {count} steps")
            self.advance()
        return self

    def times_out(self) -> ScriptCpu:
        """End its sleep as if the time limit had passed; raises ScriptError if it has none."""
        if not self.fiber.time_out():
            raise self._failure("has no sleep with a time limit to end")
        return self

    def holds_back(self, *addresses: int) -> ScriptCpu:
        """From here on let its stores to these wait until `shows` or what orders them.

        Without addresses, none from here on.
        """
        self.view.hold = frozenset(addresses).__contains__
        return self

    def shows(self, address: int) -> ScriptCpu:
        """Let the oldest store to `address` that waits become visible.

        Raises ScriptError if there is none or something orders it behind another.
        """
        self.view.show_address(address)
        return self

    def reads_early(self, *addresses: int) -> ScriptCpu:
        """From here on let its loads of these have the oldest value that they may have.

        Without addresses, none from here on.
        """
        early = frozenset(addresses)
        self.view.pick = lambda address, back: back if address in early else 0
        return self

    @property
    def view(self) -> WeakCpu:
        """Its store buffer and what it may read; raises ScriptError if memory is not weak."""
        if self.weak is None:
            raise ScriptError("the script's memory is in order; make it with memory=Memory.WEAK")
        return self.weak

    # running

    def _run(self, target: Target | None, letting: Sequence[ScriptCpu]) -> None:
        self._spins = 0
        budget = _Budget(self.script.steps_max)
        idle = 0
        seen = int(target is not None and self._stands_at(target))
        if target is not None and seen == target.point.nth:
            self._named_stop = True
            return
        while not self._arrived(target):
            leaving = self.fiber.raw
            if leaving[0] == _DONE:
                raise self._failure(f"ends without {_goal(target)}")
            if leaving[0] == _WAITING or self._spins >= SPIN_ROUNDS:
                if letting and self._let(letting, budget):
                    self._spins = 0
                    continue
                idle += 1
                slept = leaving[0] == _WAITING and not self.fiber.time_out()
                if slept or idle > SPIN_PATIENCE:
                    raise ScriptStuckError(str(self._failure(f"waits without {_goal(target)}")))
            if not budget.take():
                raise self._failure(f"takes {self.script.steps_max} steps without {_goal(target)}")
            if self.advance() and target is not None and self._passes(target, leaving):
                seen += 1
                if seen == target.point.nth:
                    self._named_stop = not target.on_departure
                    return

    def _arrived(self, target: Target | None) -> bool:
        state = self.fiber.raw[0]
        if target is None:
            return state == _DONE
        if target.point.when == "waits":
            return state == _WAITING or self._spins >= SPIN_ROUNDS
        return False

    def _stands_at(self, target: Target) -> bool:
        """Tell whether it has come to a stop of `target` already, but not because told so."""
        if target.on_departure or self._named_stop or self._asleep:
            return False
        return self._passes(target, [])

    def _passes(self, target: Target, leaving: list[int]) -> bool:
        """Tell whether the step just taken, from stop `leaving`, is one that `target` counts."""
        stop = leaving if target.on_departure else self.fiber.raw
        point = target.point
        if stop[2] not in target.sites:
            return False
        if point.address is not None and stop[3] != point.address:
            return False
        return point.inside is None or point.inside in self.stack

    def _let(self, others: Sequence[ScriptCpu], budget: _Budget) -> bool:
        """Let others step in turn until this CPU can go on; False if they cannot bring that."""
        watched = dict(self._last_round)
        while True:
            moved = False
            for other in others:
                if other is self or other.fiber.raw[0] != _READY:
                    continue
                if not budget.take():
                    return False
                other.advance()
                moved = True
                if self._can_go_on(watched):
                    return True
            if not moved:
                return False

    def _can_go_on(self, watched: dict[int, int]) -> bool:
        if self.fiber.raw[0] == _WAITING:
            return False
        if self._asleep:
            return True  # it slept and was woken
        return any(_peek(address) != value for address, value in watched.items())

    def advance(self) -> bool:
        """Take one step; tells whether it arrived at a new stop or its end (not: fell asleep)."""
        fiber = self.fiber
        self._named_stop = False
        _, kind, site, *arguments = fiber.raw
        touches = kind in _MEMORY
        if touches:
            self.script.check_address(arguments[0])
        old = self._begin_step(kind, site, arguments) if site >= 0 else 0
        depth = len(self._frames)
        panic: KernelPanic | None = None
        try:
            fiber.resume()
        except KernelPanic as stopped:
            panic = stopped
        if site >= 0 and not self._asleep:
            new = self._end_step(kind, site, arguments)
            self._watch(kind, arguments[0], old, new)
            note = self.weak.note if self.weak else ""
            step = Executed(self.index, site, arguments, old, new, depth, note)
            self.script.executed.append(step)
        raw = fiber.raw
        if self.weak and raw[0] == _DONE:
            self.weak.resynchronise()
        self._asleep = raw[0] == _WAITING
        if raw[0] == _READY:
            self._track(raw)
        if panic is not None:
            panic.add_note(f"{self.name} is {self.where()}")
            raise panic
        return not self._asleep

    def _begin_step(self, kind: int, site: int, arguments: list[int]) -> int:
        """Return the value that the step is about to find, if it touches memory."""
        if self.weak is None:
            return _peek(arguments[0]) if kind in _MEMORY else 0
        if self._asleep:
            self.weak.resynchronise()
            return 0
        return self.weak.begin(kind, site, arguments)

    def _end_step(self, kind: int, site: int, arguments: list[int]) -> int:
        """Return the value that the step has left, if it touches memory."""
        if self.weak is not None:
            return self.weak.end(kind, site, arguments[0])
        return _peek(arguments[0]) if kind in _MEMORY else 0

    def _shown(self, address: int, old: int, new: int) -> None:
        """Note that a delayed store has become visible."""
        shown = Executed(self.index, SHOWN, [address], old, new, len(self._frames))
        self.script.executed.append(shown)

    def _track(self, raw: list[int]) -> None:
        """Keep the function stack: a frame goes when the step after its return is reached."""
        if self._returned:
            self._frames.pop()
        site = self.script.engine.sites[raw[2]]
        self._returned = raw[1] == _RETURN
        if raw[1] == _ENTER:
            self._frames.append((site.function, site.line))
        else:
            self._frames[-1] = site.function, site.line

    # spinning: rounds of a loop, from cpu_relax to cpu_relax, that read the same and write nothing

    def _watch(self, kind: int, address: int, old: int, new: int) -> None:
        if kind == _RELAX:
            same = not self._round_changes and self._round == self._last_round
            self._spins = self._spins + 1 if same else 0
            self._last_round, self._round, self._round_changes = self._round, [], False
        elif kind in _READS:
            self._round.append((address, old))
        if old != new or kind in _VISIBLE_CHANGE:
            self._round_changes = True

    # saying so

    def _failure(self, what: str) -> ScriptError:
        return ScriptError(f"{self.name} {what}\n{self.name} is {self.where()}")

    def _next_step(self) -> str:
        _, _, site, *arguments = self.fiber.raw
        return self.script.texts.step(site, arguments)

    def _stack_text(self) -> str:
        functions = self.script.engine.program.functions
        lines = []
        callee = ""
        for name, last in reversed(self._frames):
            line = self.script.texts.call_line(name, callee, last) if callee else last
            lines.append(f"    in {name} ({functions[name].file}:{line})")
            callee = name
        return "\n".join(lines)


class _Budget:
    """Steps that an instruction may still take."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


def _goal(target: Target | None) -> str:
    return f"getting {target.point}" if target else "ending"


class Script:
    """A scripted interleaving of kernel functions on named CPUs.

    A context manager: at its end all CPUs are freed, and an exception from inside gets the last
    steps as a note.  `segment`, if given, lets messages name addresses, and a CPU that is about to
    touch memory outside of it stops as at a kernel assertion.  The clock starts at 0, so the same
    script from the same memory takes the same steps.  `memory` says in which order CPUs see each
    other's accesses.
    """

    def __init__(
        self,
        engine: StepEngine,
        segment: Segment | None = None,
        *,
        steps_max: int = STEPS_MAX,
        memory: Memory = Memory.SC,
    ) -> None:
        self.engine = engine
        self.weak = None if memory is Memory.SC else WeakMemory(engine, memory)
        self.texts = StepTexts(engine, segment)
        self._memory = range(segment.base, segment.base + segment.size) if segment else None
        self.steps_max = steps_max
        self.cpus: list[ScriptCpu] = []
        self.executed: list[Executed] = []
        engine.reset_clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and self.executed:
            error.add_note("last steps:\n" + self.history(NOTED_STEPS))
        for cpu in self.cpus:
            cpu.fiber.free()

    def cpu(self, name: str, function: str, *arguments: int) -> ScriptCpu:
        """Add a CPU that will run kernel function `function`; it has not taken a step yet.

        Raises ScriptError for an unknown function or a name that is taken, TypeError for other
        parameters.
        """
        if not re.fullmatch(r"[A-Za-z_]+", name) or any(c.name == name for c in self.cpus):
            raise ScriptError(f"a CPU needs a name of its own, of letters: not '{name}'")
        try:
            cpu = ScriptCpu(self, name, function, arguments)
        except KeyError as error:
            raise ScriptError(str(error.args[0])) from error
        self.cpus.append(cpu)
        return cpu

    def check_address(self, address: int) -> None:
        """Raise KernelPanic instead of touching memory that is not the segment's."""
        if self._memory is not None and address not in self._memory:
            raise KernelPanic(Bug.OOPS)

    def runs_randomly(self, seed: int) -> str:
        """Run all CPUs to their ends in a random order; returns the schedule for `replays`.

        Raises as `schedule.RandomScheduler.run`.
        """
        return RandomScheduler(self, seed).run()

    def replays(self, schedule: str) -> None:
        """Take the steps of a schedule that `runs_randomly` returned; see `schedule.replay`."""
        replay(self, schedule)

    def where(self) -> str:
        """Say where each CPU is."""
        return "\n".join(f"{c.name} is {c.where()}" for c in self.cpus)

    def history(self, last: int | None = None) -> str:
        """Table of the steps taken so far, or the `last` of them: a column per CPU."""
        first = 0 if last is None else max(0, len(self.executed) - last)
        return self.texts.table(self.executed, [c.name for c in self.cpus], first)
