# SPDX-License-Identifier: MIT
"""The plain engine: the kernel functions as ordinary Python over the ctypes shim.

For reading, `pdb`, coverage and tests of the kernel's logic; about a thousand times slower than
native, on the same segment and with the same atomics, so both kinds of workers can share one.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from spfemu import shims
from spfemu.engines.source import Program
from spfemu.engines.steps import Site
from spfemu.mm.bug import Bug
from spfemu.primitives import PRIMITIVES


class KernelPanic(Exception):  # noqa: N818 the kernel calls it so
    """A kernel assertion failed; `code` says which (see mm/bug.py)."""

    def __init__(self, code: int) -> None:
        name = f" ({Bug(code).name})" if code in set(Bug) else ""
        super().__init__(f"kernel assertion {code}{name} failed")
        self.code = code

    def __reduce__(self) -> tuple[type[KernelPanic], tuple[int]]:
        """Go through a pipe by the code, not by the message."""
        return KernelPanic, (self.code,)


def _panic(code: int) -> None:
    raise KernelPanic(code)


class PlainEngine:
    """Interprets kernel functions."""

    name = "plain"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sites: list[Site] = []
        library = shims.load()
        bound: dict[str, Any] = {
            name: getattr(library, "spf_" + name)
            for name in PRIMITIVES
            if name not in ("panic", "this_cpu")
        }
        self._this_cpu = 0
        bound["panic"] = _panic
        bound["this_cpu"] = lambda: self._this_cpu
        bound.update(program.config)
        self.functions: dict[str, Callable[..., Any]] = {}
        namespaces: dict[str, dict[str, Any]] = {}
        for name, function in program.functions.items():
            namespace = {**function.module_names, **bound}
            python = function.python
            code = python.__code__
            self.functions[name] = types.FunctionType(code, namespace, name)
            namespaces[name] = namespace
        for name, namespace in namespaces.items():
            namespace.update(self.functions)
            if inner := program.functions[name].inner:
                namespace["proceed"] = self.functions[inner]

    def call(self, name: str, *arguments: int) -> int | tuple[int, ...]:
        """Run kernel function `name`; raises KernelPanic if a kernel assertion fails."""
        if self.program.functions[name].parameters[:1] == ("cpu",):
            self._this_cpu = arguments[0]
        result = self.functions[name](*arguments)
        return result if isinstance(result, tuple) else int(result or 0)
