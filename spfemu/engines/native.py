# SPDX-License-Identifier: MIT
"""The native engine: primitives are LLVM atomics inlined into optimised machine code."""

from __future__ import annotations

from spfemu.engines.jit import Compiled
from spfemu.engines.source import Program


class NativeEngine:
    """Runs kernel functions at machine speed, without the GIL.

    Attributes: `program`; `compiled`; `sites`, the places that hooks of instrumented code are told.
    """

    name = "native"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.compiled = Compiled(program, stepped=False)
        self.sites = self.compiled.sites

    def call(self, name: str, *arguments: int) -> int | tuple[int, ...]:
        """Run kernel function `name`."""
        return self.compiled.function(name)(*arguments)
