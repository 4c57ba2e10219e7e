# SPDX-License-Identifier: MIT
"""The stepped engine: the kernel functions, compiled, stopping before every primitive.

Each call runs as a fiber on a stack of its own and goes on only when its owner says so, which
makes an interleaving a thing that a program can choose, repeat and write down.  The scheduler is
Python (see script.py); the code between two stops is machine code, the same that the native
engine compiles except for the stops.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from dataclasses import dataclass
from enum import IntEnum

from spfemu import shims
from spfemu.engines.dependencies import addressing_loads
from spfemu.engines.jit import Compiled
from spfemu.engines.plain import KernelPanic
from spfemu.engines.source import KernelFunction, Program
from spfemu.engines.steps import Site, Step
from spfemu.errors import SpfemuError, nearest
from spfemu.primitives import PRIMITIVES

STACK_BYTES = 256 << 10
"""Stack of a fiber; calls nest at most `source.MAX_DEPTH` deep and keep only integers there, all of
them, as the code is not optimised."""
CALL_STEPS = 50_000_000
"""Steps after which `StepEngine.call` gives up on a function."""
CALL_RELAXES = 100_000
"""Times that a function may wait in `cpu_relax` with nobody else running before it is stuck."""

_STATE, _KIND, _SITE, _A0, _A1, _A2, _RESULT, _WAKE, _STEPS, _CPU = range(len(shims.FIBER_FIELDS))
_READY = shims.FIBER_READY


class StuckError(SpfemuError):
    """A function can never end: it waits for a CPU that does not run."""


class FiberState(IntEnum):
    """Whether a fiber can be resumed (native_shims/spf_shims.h: enum spf_fiber_state)."""

    READY = shims.FIBER_READY
    RUNNING = shims.FIBER_RUNNING
    WAITING = shims.FIBER_WAITING
    DONE = shims.FIBER_DONE
    PANICKED = 16
    FREED = -1


@dataclass(frozen=True)
class StepEvent:
    """What a fiber will do when it is resumed: the primitive with its first three arguments.

    At ``ENTER`` the arguments are the function's, at ``RETURN`` its results.
    """

    kind: Step
    site: Site
    arguments: tuple[int, ...]

    def __str__(self) -> str:
        words = ", ".join(f"{a:#x}" if abs(a) > 0xFFFF else str(a) for a in self.arguments)
        return f"{self.site.function}:{self.site.line} {self.site.primitive}({words})"


class Fiber:
    """One running call of a kernel function."""

    def __init__(self, engine: StepEngine, function: str, arguments: tuple[int, ...]) -> None:
        declared = engine.function(function)
        if len(arguments) != len(declared.parameters):
            raise TypeError(
                f"{function} takes ({', '.join(declared.parameters)}), not {len(arguments)} "
                "arguments"
            )
        self.engine = engine
        self.function = function
        self._results = declared.results
        count = max(len(arguments), declared.results, 1)
        self._words = (ctypes.c_int64 * count)(*arguments)
        box = ctypes.c_int64(ctypes.addressof(self._words))
        library = engine.library
        handle = library.spf_fiber_new(
            engine.compiled.entry(function), ctypes.addressof(box), 1, STACK_BYTES
        )
        if handle < 0:
            raise OSError(-handle, os.strerror(-handle))
        self.handle = handle
        self._public = (ctypes.c_int64 * len(shims.FIBER_FIELDS)).from_address(handle)
        self._free = weakref.finalize(self, library.spf_fiber_free, handle)
        self._resume = library.spf_fiber_resume
        self._panics = engine.panics

    @property
    def state(self) -> FiberState:
        """READY before a step, WAITING on a futex, DONE, PANICKED or FREED for good."""
        return FiberState.PANICKED if self._panicked() else FiberState(self._public[_STATE])

    def _panicked(self) -> bool:
        return self._public[_SITE] in self._panics

    @property
    def ready(self) -> bool:
        """Whether `resume` may be called; a PANICKED one looks ready, too."""
        return self._public[_STATE] == _READY

    @property
    def event(self) -> StepEvent | None:
        """What the last step stopped at; None before the first."""
        kind, site, *arguments = self._public[_KIND : _A2 + 1]
        if site < 0:
            return None
        count = self.engine.arity[site]
        return StepEvent(Step(kind), self.engine.sites[site], tuple(arguments[:count]))

    @property
    def raw(self) -> list[int]:
        """State, kind, site, three arguments as the shim keeps them: for loops over steps."""
        return self._public[: _A2 + 1]

    @property
    def steps(self) -> int:
        """Events so far."""
        return int(self._public[_STEPS])

    @property
    def result(self) -> int | tuple[int, ...]:
        """What the function returned; raises ValueError unless it is DONE."""
        if self._public[_STATE] != FiberState.DONE:
            raise ValueError(f"{self.function} has not ended: {self.event}")
        if self._results > 1:
            return tuple(self._words[: self._results])
        return int(self._public[_RESULT])

    def resume(self) -> None:
        """Execute the primitive that it stands before and run to the next step, wait or end.

        Raises KernelPanic when it arrives at a failed kernel assertion, ValueError if it is not
        READY.
        """
        public = self._public
        if public[_STATE] != _READY or self._panicked():
            raise ValueError(f"{self.function} cannot go on: it is {self.state.name}")
        self._resume(self.handle)
        if self._panicked():
            raise KernelPanic(int(public[_A0]))

    def run(self, max_steps: int, kind: int = -1, site: int = -1) -> FiberState:
        """Resume until it stops at (`kind`, `site`), waits or ends, at most `max_steps` times.

        -1 stands for any kind or site but, with both -1, the run goes on for `max_steps`; a failed
        kernel assertion ends every run.  Raises KernelPanic and ValueError as `resume`.
        """
        state = self.state
        if state is not FiberState.READY:
            raise ValueError(f"{self.function} cannot go on: it is {state.name}")
        if kind == site == -1:
            kind = Step.PANIC
        self.engine.library.spf_fiber_run(self.handle, kind, site, max_steps)
        if self._panicked():
            # once resumed it is parked in a wait for its code to change
            parked = self._public[_KIND] != Step.PANIC
            raise KernelPanic(int(self._public[_A1 if parked else _A0]))
        return FiberState(self._public[_STATE])

    def time_out(self) -> bool:
        """End a wait that has a time limit as if the time were over; False if it has none."""
        waits = self._public[_STATE] == FiberState.WAITING
        return waits and self.engine.library.spf_fiber_timeout(self.handle) == 0

    def free(self) -> None:
        """Give its stack back; what it was doing is abandoned half done."""
        self._free()
        self._public = (ctypes.c_int64 * len(shims.FIBER_FIELDS))(FiberState.FREED, -1, -1)


class StepEngine:
    """Runs kernel functions step by step.

    Attributes: `program`; `compiled`; `sites`, the stops by number; `arity`, how many arguments
    an event of that site carries; `panics`, the sites of failed assertions.  All fibers of a
    process belong to one thread.
    """

    name = "stepped"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.compiled = Compiled(program, stepped=True)
        self.library = shims.load()
        self.sites = self.compiled.sites
        self.arity = [self._arity(site) for site in self.sites]
        self.panics = frozenset(i for i, s in enumerate(self.sites) if s.primitive == "panic")

    def _arity(self, site: Site) -> int:
        function = self.program.functions[site.function]
        if site.primitive == "enter":
            count = len(function.parameters)
        elif site.primitive == "return":
            count = function.results
        else:
            count = PRIMITIVES[site.primitive].__code__.co_argcount
        return min(count, 3)

    @functools.cached_property
    def addressing(self) -> frozenset[int]:
        """Stops before loads whose values may become addresses: later loads come after them."""
        loads = addressing_loads(self.program)
        return frozenset(i for i, site in enumerate(self.sites) if site in loads)

    def function(self, name: str) -> KernelFunction:
        """Return the kernel function `name`; raises KeyError that names the nearest."""
        functions = self.program.functions
        if name not in functions:
            raise KeyError(f"no kernel function '{name}'{nearest(name, functions)}")
        return functions[name]

    def spawn(self, name: str, *arguments: int) -> Fiber:
        """Begin a call of kernel function `name`; nothing of it has run yet."""
        return Fiber(self, name, arguments)

    def call(self, name: str, *arguments: int) -> int | tuple[int, ...]:
        """Run kernel function `name` to its end, alone; sleeps with a time limit time out.

        Raises StuckError when it sleeps without limit, spins or loops for ever, and KernelPanic
        when a kernel assertion fails.
        """
        fiber = self.spawn(name, *arguments)
        try:
            self._finish(fiber)
            return fiber.result
        finally:
            fiber.free()

    def _finish(self, fiber: Fiber) -> None:
        relaxes = 0
        while fiber.steps < CALL_STEPS:
            state = fiber.run(CALL_STEPS, Step.RELAX)
            if state is FiberState.DONE:
                return
            if state is FiberState.WAITING and not fiber.time_out():
                raise StuckError(f"{fiber.function} sleeps for ever at {fiber.event}")
            relaxes += 1
            if relaxes > CALL_RELAXES:
                raise StuckError(f"{fiber.function} spins for ever at {fiber.event}")
        raise StuckError(f"{fiber.function} does not end: after {fiber.steps} steps {fiber.event}")

    def clock(self) -> int:
        """Steps of all fibers since `reset_clock`: what `read_cycles` returns."""
        return self.library.spf_step_clock()

    def reset_clock(self) -> None:
        """Start the clock at 0, so that what follows does not depend on what was before."""
        self.library.spf_step_clock_reset()
