# SPDX-License-Identifier: MIT
"""Points in kernel code that a script names: before or after a function or a primitive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from spfemu.engines.source import KernelFunction, Program
from spfemu.engines.steps import Site
from spfemu.errors import nearest
from spfemu.primitives import PRIMITIVES


class ScriptError(AssertionError):
    """A script asks for what does not exist or did not come true; the message says where."""


class ScriptStuckError(ScriptError):
    """A CPU of a script waits, and none of those that may run lets it go on."""


@dataclass(frozen=True)
class Point:
    """Where a CPU of a script shall stop; made by `before`, `after` and `waits`."""

    when: str
    name: str = ""
    nth: int = 1
    inside: str | None = None
    address: int | None = None

    def __str__(self) -> str:
        if not self.name:
            return self.when
        text = f"{self.when} {self.name}"
        text += f" of {self.address:#x}" if self.address is not None else ""
        text += f" inside {self.inside}" if self.inside else ""
        return text + (f" for the {self.nth}. time" if self.nth > 1 else "")


def before(
    name: str, *, nth: int = 1, inside: str | None = None, address: int | None = None
) -> Point:
    """Stop before the `nth` call of function `name` from here on, or use of primitive `name`.

    `inside` counts only those under a call of that function, `address` only primitives whose
    first argument it is.
    """
    return Point("before", name, nth, inside, address)


def after(
    name: str, *, nth: int = 1, inside: str | None = None, address: int | None = None
) -> Point:
    """Stop once the `nth` call of function `name` from here on has done all that it does.

    For a primitive, once it is executed.  Parameters as for `before`.
    """
    return Point("after", name, nth, inside, address)


def waits() -> Point:
    """Stop once the CPU sleeps on a futex or spins: only another CPU can let it go on."""
    return Point("waits")


@dataclass(frozen=True)
class Target:
    """A point in the terms of one program: stops by number."""

    point: Point
    sites: frozenset[int]
    on_departure: bool


def resolve(point: Point, program: Program, sites: list[Site], top: str) -> Target:
    """Find the stops that `point` means for a CPU that runs function `top`.

    Raises ScriptError for a name that does not exist and for a point that no call of `top` can
    reach.
    """
    if point.when == "waits":
        return Target(point, frozenset(), False)
    functions = program.functions
    point = replace(
        point,
        name=_watched(functions, point.name),
        inside=point.inside and _watched(functions, point.inside),
    )
    reachable = _callees(functions, top)
    if point.inside is not None:
        if point.inside not in functions:
            hint = nearest(point.inside, functions)
            raise ScriptError(f"no kernel function '{point.inside}'{hint}")
        if point.inside not in reachable:
            raise ScriptError(f"'{top}' never calls '{point.inside}'")
        reachable = _callees(functions, point.inside)
    if point.name in functions:
        return _function_target(point, reachable, sites, top)
    if point.name not in PRIMITIVES:
        hint = nearest(point.name, [*functions, *PRIMITIVES])
        raise ScriptError(f"no kernel function or primitive '{point.name}'{hint}")
    found = _sites(sites, point.name, reachable)
    if not found:
        used = sorted({s.primitive for s in sites if s.function in reachable} & set(PRIMITIVES))
        raise ScriptError(
            f"'{point.inside or top}' never uses {point.name}; it uses {', '.join(used) or 'none'}"
        )
    return Target(point, found, point.when == "after")


def _watched(functions: Mapping[str, KernelFunction], name: str) -> str:
    """Name that the function `name` has behind the oracles, which have no stops, around it."""
    while name in functions and functions[name].noinstr and functions[name].inner:
        name = functions[name].inner
    return name


def _function_target(point: Point, reachable: set[str], sites: list[Site], top: str) -> Target:
    if point.name not in reachable:
        raise ScriptError(f"'{point.inside or top}' never calls '{point.name}'")
    if point.address is not None:
        raise ScriptError(f"'address' goes with a primitive, not with function '{point.name}'")
    stop = "enter" if point.when == "before" else "return"
    return Target(point, _sites(sites, stop, {point.name}), False)


def _sites(sites: list[Site], primitive: str, functions: Iterable[str]) -> frozenset[int]:
    wanted = set(functions)
    return frozenset(
        i for i, s in enumerate(sites) if s.primitive == primitive and s.function in wanted
    )


def _callees(functions: Mapping[str, KernelFunction], top: str) -> set[str]:
    found: set[str] = set()
    pending = [top]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(functions[name].calls)
    return found
