# SPDX-License-Identifier: MIT
"""What tests of the emulated kernel run on: a segment, an engine, and real pinned processes.

::

    machine = make_machine(functions_of(my_module), nr_cpus=3)
    with machine.workers() as workers:
        workers.start(1, "down_write", machine.cpu(1), sem)
        workers.wait_until(lambda: machine.event(1, Event.RWSEM_WRITE_SLEEP))
        machine.call("up_write", machine.cpu(0), sem)
        assert workers.join() == {1: 0}
"""

import ctypes
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Self, TypeVar, cast

import multiprocess
import numpy as np
import pytest

from spfemu.engines.native import NativeEngine
from spfemu.engines.source import KernelFunction, Program, functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.kernel import kernel
from spfemu.layout import CPU, RWSEM_WAITER
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import PageKind
from spfemu.mm.irq import CpuState
from spfemu.segment import Segment

CORE_MODULES = (
    *("bug", "vmstat", "irq", "spinlock", "sched", "rcu", "mmap_lock", "vma_write"),
    *("rwsem", "rwsem_words", "rwsem_waiters", "rwsem_spin", "osq"),
)
"""Modules of spfemu.mm that need no other, except for RCU's two callbacks."""

WATCHDOG_SECONDS = 60.0
"""After this a test is stuck: a hundred times what any of them takes."""
STUCK_SECONDS = 1.0
"""Watchdog of tests that expect to get stuck."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

Layer = Mapping[str, KernelFunction]


@kernel
def vm_area_free_rcu(cpu: int, vma: int) -> None:
    """Stand in for the callback of a VMA where a test queues none."""
    vm_bug_on(vma, Bug.RCU_UNBALANCED)


@kernel
def free_table_now(cpu: int, page: int) -> None:
    """Stand in for the callback of a page table where a test queues none."""
    vm_bug_on(page, Bug.RCU_UNBALANCED)


@kernel
def drain_local_cpu(cpu: int, seq: int) -> None:
    """Stand in for what a drainer asks for where no test drains."""
    vm_bug_on(seq, Bug.RCU_UNBALANCED)


@kernel
def page_kind(page: int) -> int:
    """Say of every page that it is a table."""
    return PageKind.TABLE


@kernel
def put_page(cpu: int, page: int) -> None:
    """Stand in for the callback of a page where a test queues none."""
    vm_bug_on(page, Bug.RCU_UNBALANCED)


@cache
def core_layer() -> Layer:
    """Return the kernel functions of CORE_MODULES, with stand-ins for the RCU callbacks."""
    merged = functions_of(sys.modules[__name__])
    for name in CORE_MODULES:
        merged.update(functions_of(import_module("spfemu.mm." + name)))
    return merged


def renamed(layer: Layer, **names: str) -> Layer:
    """Return functions of `layer` under the names of those that they replace (new=old)."""
    picked = {}
    for new, old in names.items():
        function = layer[old]
        picked[new] = KernelFunction(
            new, function.tree, function.python, function.file, function.slowpath
        )
    return picked


class WorkersError(AssertionError):
    """A worker died, panicked or got stuck; the message says which and shows the CPUs."""


class Machine:
    """A segment and the native engine on it."""

    def __init__(self, engine: NativeEngine, segment: Segment) -> None:
        self.engine = engine
        self.segment = segment
        self.call = engine.call

    @property
    def program(self) -> Program:
        """What the engine runs."""
        return self.engine.program

    def cpu(self, index: int) -> int:
        """Address of CPU block `index`."""
        return self.segment.cpu(index)

    def event(self, index: int, event: int) -> int:
        """Count of `event` on CPU `index`."""
        return int(self.segment.cpus["event"][index][event])

    def total(self, event: int) -> int:
        """Count of `event` on all CPUs."""
        return int(self.segment.cpus["event"][:, event].sum())

    def workers(self, watchdog: float = WATCHDOG_SECONDS) -> "Workers":
        """Prepare to fork workers; use it in a with statement."""
        return Workers(self, watchdog)


class Workers:
    """Forked processes, one per emulated CPU, each pinned to a core and killed at the end."""

    def __init__(self, machine: Machine, watchdog: float) -> None:
        self.machine = machine
        self.deadline = time.monotonic() + watchdog
        self.processes: dict[int, multiprocess.Process] = {}
        self.cores = sorted(os.sched_getaffinity(0))
        nr_cpus = machine.segment.geometry.nr_cpus
        # results of the workers' functions; anonymous, so it is inherited and leaves nothing
        self._results = np.frombuffer(mmap.mmap(-1, 8 * nr_cpus), dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.join()

    def start(self, index: int, function: str, *arguments: int) -> None:
        """Fork a process that runs kernel function `function` as CPU `index` at once."""
        body = self._body(index, lambda: self.machine.call(function, *arguments))
        self._fork(index, body)

    def start_python(self, index: int, run: Callable[[], int]) -> None:
        """Fork a process that runs a Python function as CPU `index` at once."""
        self._fork(index, self._body(index, run))

    def start_gated(self, calls: Mapping[int, tuple[str, *tuple[int, ...]]]) -> None:
        """Fork a process per (CPU, call) that begin together when all are ready."""
        context = multiprocess.get_context("fork")
        gate = context.Barrier(len(calls))
        for index, (function, *arguments) in calls.items():

            def run(function: str = function, arguments: Iterable[int] = arguments) -> int:
                gate.wait()
                return self.machine.call(function, *arguments)

            self._fork(index, self._body(index, run))

    def _fork(self, index: int, body: Callable[[], None]) -> None:
        process = multiprocess.get_context("fork").Process(target=body, daemon=True)
        self.processes[index] = process
        process.start()

    def _body(self, index: int, run: Callable[[], int]) -> Callable[[], None]:
        parent = os.getpid()
        cpu = self.machine.cpu(index)

        def body() -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            os.sched_setaffinity(0, {self.cores[index % len(self.cores)]})
            self.machine.call("cpu_idle_exit", cpu)
            self._results[index] = run()
            self.machine.call("cpu_idle_enter", cpu)

        return body

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for what workers will bring about; WorkersError if they die or get stuck."""
        while not condition():
            self._check()
            time.sleep(0.0005)

    def join(self) -> dict[int, int]:
        """Wait for all workers to end well; returns their functions' results by CPU."""
        self.wait_until(lambda: all(p.exitcode == 0 for p in self.processes.values()))
        return {index: int(self._results[index]) for index in self.processes}

    def finished(self, index: int) -> bool:
        """Tell whether the worker of CPU `index` has ended."""
        return self.processes[index].exitcode is not None

    def _check(self) -> None:
        for index, process in self.processes.items():
            code = process.exitcode
            if code:
                known = code in Bug.__members__.values()
                what = f"stopped at {Bug(code).name}" if known else f"ended with {code}"
                raise WorkersError(f"CPU {index} {what}\n{self._report()}")
        if time.monotonic() > self.deadline:
            raise WorkersError(f"stuck\n{self._report()}")

    def _report(self) -> str:
        lines = []
        for index, process in self.processes.items():
            segment, cpu = self.machine.segment, self.machine.segment.cpus[index]
            waiter = segment.cpu(index) + CPU.waiter
            lines.append(
                f"CPU {index}: exit {process.exitcode}, {CpuState(int(cpu['state'])).name}, "
                f"waiter type {segment.word(waiter + RWSEM_WAITER.type)} "
                f"task {segment.word(waiter + RWSEM_WAITER.task)}, "
                f"rcu_nesting {cpu['rcu_nesting']}, rcu_qs {cpu['rcu_qs']}"
            )
        lines.append(f"rcu_gp {self.machine.segment.system['rcu_gp']}")
        return "\n".join(lines)


MachineFactory = Callable[..., Machine]

Engine = TypeVar("Engine", NativeEngine, StepEngine)

_ENGINES: dict[object, object] = {}


def engine_of(
    kind: type[Engine], *layers: Layer, config: Mapping[str, int] | None = None
) -> Engine:
    """Return an engine for the core under layers of functions; the same one for the same ones."""
    functions: dict[str, KernelFunction] = dict(core_layer())
    for layer in layers:
        functions.update(layer)
    named = tuple(sorted((n, f.file, f.tree.name) for n, f in functions.items()))
    key = kind, named, tuple(sorted((config or {}).items()))
    if key not in _ENGINES:
        _ENGINES[key] = kind(link([functions], config or {}))
    return cast("Engine", _ENGINES[key])


def seeds(count: int) -> list[int]:
    """Seeds of one run: from $SPFEMU_TEST_SEED onwards, else new ones each time."""
    first = int(os.environ.get("SPFEMU_TEST_SEED") or int.from_bytes(os.urandom(3), "big"))
    sys.stdout.write(f"SPFEMU_TEST_SEED={first} repeats these seeds\n")
    return list(range(first, first + count))


def expect_stuck(run: Callable[[Workers], object], machine: Machine) -> None:
    """Check that `run` gets stuck: what a broken variant must do."""
    with machine.workers(STUCK_SECONDS) as workers, pytest.raises(WorkersError, match="stuck"):
        run(workers)
        workers.join()
