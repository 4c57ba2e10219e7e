# SPDX-License-Identifier: MIT
"""The marks of kernel functions.

Kernel functions are written in a restricted Python that every engine can run: parameters, locals
and results are integers that fit 64 bits (or a tuple of them as a result); statements are
assignments, ``if``, ``while``, ``for ... in range(...)``, ``break``, ``continue``, ``return``;
calls go to kernel functions and primitives only; other names are integer constants of their
module (or attributes of its enums and structs).  See docs/overrides.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Mark a kernel function; engines re-create it over their own primitives."""
    function.__kernel__ = "inline"  # type: ignore[attr-defined]
    return function


def slowpath(function: F) -> F:
    """Mark a kernel function that is off the fast path and not worth inlining."""
    function.__kernel__ = "slowpath"  # type: ignore[attr-defined]
    return function


def noinstr(function: F) -> F:
    """Mark a kernel function, besides, that no hook and no stop is compiled into.

    For code that watches others; what an oracle holds is of this kind without the mark.
    """
    function.__noinstr__ = True  # type: ignore[attr-defined]
    return function


def notrace(function: F) -> F:
    """Mark a kernel function, besides, whose calls are in no history: there would be too many."""
    function.__notrace__ = True  # type: ignore[attr-defined]
    return function


def around(function: F) -> F:
    """Mark a kernel function that stands around the one of its name, whoever defines that.

    It takes the same parameters and calls what it stands around by ``proceed(...)``.  Override
    files and oracles (see spfemu/stress) may hold such functions, the kernel does not.
    """
    function.__kernel__ = "around"  # type: ignore[attr-defined]
    return function


def proceed(*_arguments: int) -> Any:
    """Call, in a function marked `around`, the function that it stands around."""
    raise RuntimeError("kernel code runs in an engine: see spfemu.engines")
