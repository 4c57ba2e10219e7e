# SPDX-License-Identifier: MIT
"""Put together the program of one measurement: kernel, protocol, workload, overrides."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol, cast

import spfemu.mm
import spfemu.protocols
import spfemu.stress.oracles
import spfemu.workloads
from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import KernelFunction, KernelSourceError, Program, functions_of, link
from spfemu.engines.steps import HOOKS, Site
from spfemu.errors import UsageError, nearest
from spfemu.protocols import protocol_functions
from spfemu.stress import oracle_layers
from spfemu.workloads.parameters import STRESS, TRACE, Needs, Param, Parameters

ENTRY_POINTS = ("worker_setup", "worker_loop", "worker_exit")
"""What a worker process calls."""
ENGINES = {
    "native": "compiled to machine code: for measuring",
    "plain": "interpreted: for reading, debugging and coverage, about a thousand times slower",
}
TARGETS = ("emulator", "host")
_NO_WORKLOADS = ("common", "defaults", "no_kthreads", "parameters")


class Engine(Protocol):
    """What `spfemu.engines` classes have in common."""

    sites: list[Site]
    """Places that hooks are told; none in plain code."""

    def call(self, name: str, *arguments: int) -> int | tuple[int, ...]:
        """Run a kernel function."""
        ...


class Workload:
    """A workload's module, with its Python side typed."""

    def __init__(self, name: str, module: types.ModuleType) -> None:
        self.name = name
        self.modules = _with_bases(module)
        """The workload's own module, then those that it extends."""
        self.description = _first_line(module)
        self.defaults: Parameters = self._value("DEFAULTS")
        self.needs = cast("Callable[[Parameters], Needs]", self._value("needs"))
        self.iterations = cast("Callable[[Parameters], int]", self._value("iterations"))
        self.has_writers = self._value("writer_op", None) is not None
        self.faults: bool = self._value("FAULTS", default=True)
        self.forks: bool = self._value("FORKS", default=False)
        self.locked_faults: bool = self._value("LOCKED_FAULTS", default=False)
        self.pages_shared: bool = self._value("PAGES_SHARED", default=False)
        self.monitors: bool = self._value("MONITORS", default=False)
        self.on_host: bool = self._value("ON_HOST", default=True)
        self.overlap_on_host: bool = self._value("OVERLAP_ON_HOST", default=True)

    def _value(self, name: str, default: Any = ...) -> Any:
        """Return what the workload, else what it extends has under `name`."""
        for module in self.modules:
            if hasattr(module, name):
                return getattr(module, name)
        if default is ...:
            raise AttributeError(f"workload {self.name} has no {name}")
        return default

    def functions(self) -> list[dict[str, KernelFunction]]:
        """Return its kernel functions in layers, the later ones replacing the earlier."""
        return [functions_of(module) for module in reversed(self.modules)]

    def parameters(self, **given: Any) -> Parameters:
        """Return the parameters with what is not given (None) as the workload has it."""
        return replace(self.defaults, **{k: v for k, v in given.items() if v is not None})


class TraceWorkload(Workload):
    """The calls of a recording; see `spfemu.replay.workload`."""

    def __init__(self) -> None:
        super().__init__(TRACE, importlib.import_module("spfemu.replay.workload"))

    def functions(self) -> list[dict[str, KernelFunction]]:
        """Return its kernel functions, and those that it shares with replays."""
        placing = importlib.import_module("spfemu.replay.placing")
        return [functions_of(placing), *super().functions()]


class StressWorkload(Workload):
    """Random accesses and calls that know what they must find; see `spfemu.stress.mix`."""

    def __init__(self) -> None:
        super().__init__(STRESS, importlib.import_module("spfemu.stress.mix.workload"))

    def functions(self) -> list[dict[str, KernelFunction]]:
        """Return its kernel functions, of all the modules that it is made of."""
        package = "spfemu.stress.mix"
        parts: tuple[str, ...] = self._value("PARTS")
        modules = [importlib.import_module(f"{package}.{part}") for part in parts]
        return [*map(functions_of, modules), *super().functions()]


def _with_bases(module: types.ModuleType) -> list[types.ModuleType]:
    """Return a workload's module and those that it extends, by its ``EXTENDS``."""
    found = [module]
    while (base := getattr(found[-1], "EXTENDS", None)) is not None:
        found.append(importlib.import_module(f"spfemu.workloads.{base}"))
    return found


def _first_line(module: types.ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


@cache
def _modules(package: types.ModuleType) -> dict[str, types.ModuleType]:
    """Import all modules of a package; what is in its folder is looked up once."""
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg]
    return {n: importlib.import_module(f"{package.__name__}.{n}") for n in sorted(names)}


def workloads() -> dict[str, Workload]:
    """All workloads by the name that the command line uses."""
    found = {}
    for module_name, module in _modules(spfemu.workloads).items():
        if module_name not in _NO_WORKLOADS:
            name = getattr(module, "NAME", module_name)
            found[name] = Workload(name, module)
    return found


def protocols() -> dict[str, types.ModuleType]:
    """All protocols by the name that the command line uses."""
    return {name.replace("_", "-"): m for name, m in _modules(spfemu.protocols).items()}


def oracles() -> list[types.ModuleType]:
    """All modules of kernel functions that watch what a stress run does, the inner ones first."""
    modules = _modules(spfemu.stress.oracles).values()
    return sorted(modules, key=lambda module: getattr(module, "OUTERMOST", False))


def list_workloads() -> dict[str, str]:
    """Name and one-line description of each workload."""
    return {name: workload.description for name, workload in workloads().items()}


def list_protocols() -> dict[str, str]:
    """Name and one-line description of each protocol."""
    return {name: _first_line(module) for name, module in protocols().items()}


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known; raises UsageError that suggests the nearest one."""
    names = list(known)
    if name in names:
        return name
    raise UsageError(f"no {kind} '{name}'{nearest(name, names)} ({', '.join(names)})")


def workload(name: str) -> Workload:
    """Return the workload `name`; raises UsageError.

    TRACE is in no list: it is nothing without a recording.  STRESS is none to measure with.
    """
    if name == TRACE:
        return TraceWorkload()
    if name == STRESS:
        return StressWorkload()
    known = workloads()
    return known[choose("workload", name, known)]


def compose(
    workload_name: str,
    protocol: str = "spf",
    target: str = "emulator",
    config: Mapping[str, int] | None = None,
    overrides: Sequence[str] = (),
    oracles: Sequence[types.ModuleType] = (),
    entry_points: Sequence[str] = ENTRY_POINTS,
) -> Program:
    """Return the program that workers of a measurement run.

    Layers, the later ones replacing functions of the earlier: the emulated kernel, the protocol,
    the workload, on the host target the real kernel's calls, the override files.  The oracles
    (see spfemu/stress) stand around all that.  What no entry point reaches is left out; assertions
    and the kernel's own threads too unless `config` asks for CONFIG_DEBUG_VM and CONFIG_KTHREADS.
    Raises UsageError for a name that is not known, KernelSourceError for an override or oracle that
    cannot be used.
    """
    choose("target", target, TARGETS)
    choose("protocol", protocol, protocols())
    layers = [functions_of(module) for module in _modules(spfemu.mm).values()]
    layers.append(protocol_functions(protocol))
    for name in ("common", "defaults"):
        layers.append(functions_of(importlib.import_module(f"spfemu.workloads.{name}")))
    layers += workload(workload_name).functions()
    if target == "host":
        layers.append(functions_of(importlib.import_module("spfemu.host.calls")))
        layers.append(functions_of(importlib.import_module("spfemu.host.direct_io")))
        if workload(workload_name).forks:
            layers.append(functions_of(importlib.import_module("spfemu.host.fork")))
    measured = {"CONFIG_DEBUG_VM": 0, "CONFIG_KTHREADS": 0, **(config or {})}
    if not measured["CONFIG_KTHREADS"]:
        layers.append(functions_of(importlib.import_module("spfemu.workloads.no_kthreads")))
    wrappers = oracle_layers(oracles) if oracles else []
    elsewhere = all_names() if oracles else ()
    program = link(layers, measured, overrides, wrappers, elsewhere)
    return reachable(program, [*entry_points, *(h for h in HOOKS if h in program.functions)])


@cache
def all_names() -> frozenset[str]:
    """Names of the kernel functions of all protocols and workloads."""
    modules = [*protocols().values(), *_modules(spfemu.workloads).values()]
    return frozenset(name for module in modules for name in functions_of(module))


def reachable(program: Program, entry_points: Iterable[str]) -> Program:
    """Return `program` without the functions that no entry point calls."""
    wanted: set[str] = set()
    stack = list(entry_points)
    while stack:
        name = stack.pop()
        if name not in wanted:
            wanted.add(name)
            stack.extend(program.functions[name].calls)
    kept: dict[str, KernelFunction] = {n: f for n, f in program.functions.items() if n in wanted}
    for name in program.overridden:
        if name not in wanted:
            function = program.functions[name]
            raise KernelSourceError(
                f"{function.file}:{function.tree.lineno}: '{function.tree.name}' is never called "
                "by this workload with this protocol: the override would change nothing"
            )
    return replace(program, functions=kept)


def reads(program: Program, param: Param) -> bool:
    """Tell whether a function of `program` names a parameter of workloads."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == param.name
        and isinstance(node.value, ast.Name)
        and node.value.id == Param.__name__
        # the workload's functions, which name parameters, come last
        for function in reversed(program.functions.values())
        for node in ast.walk(function.tree)
    )


def make_engine(name: str, program: Program) -> Engine:
    """Compile or bind `program`; raises UsageError for an unknown engine."""
    choose("engine", name, ENGINES)
    if name == "native":
        return NativeEngine(program)
    return PlainEngine(program)
