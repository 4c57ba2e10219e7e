# SPDX-License-Identifier: MIT
"""Steps as text: one step, an address, a table of all steps with a column per CPU."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from spfemu.engines.stepped import StepEngine
from spfemu.engines.symbols import symbol
from spfemu.segment import Segment

_SHOW_VALUE = ("load", "read_once", "smp_load_acquire", "cmpxchg", "cmpxchg_acquire",
               "cmpxchg_release", "cmpxchg_relaxed")  # fmt: skip


SHOWN = -1
"""Executed.site of a delayed store that becomes visible."""


class Executed(NamedTuple):
    """One step that a CPU took; `old` and `new` are the word's values around a memory access.

    `note`: under a weak memory, ``+`` for a store that is held back, ``?2`` for a load that has the
    value from two changes ago.
    """

    cpu: int
    site: int
    arguments: list[int]
    old: int
    new: int
    depth: int
    note: str = ""


def value_text(segment: Segment | None, value: int) -> str:
    """Name an address inside the segment; small numbers in decimal, large in hexadecimal."""
    named = symbol(segment, value) if segment is not None else None
    return named or (str(value) if abs(value) < 1 << 16 else f"{value:#x}")


def columns(head: str, rows: Sequence[tuple[str, int, str]], names: Sequence[str]) -> str:
    """Table of (what is under `head`, index of the column, text), a column for each of `names`."""
    left = max([5, len(head), *(len(first) for first, _, _ in rows)])
    widths = [
        max([len(name), *(len(text) for _, index, text in rows if index == column)])
        for column, name in enumerate(names)
    ]
    header = [name.ljust(width) for name, width in zip(names, widths, strict=True)]
    lines = ["  ".join([head.rjust(left), *header])]
    for first, column, text in rows:
        cells = [text.ljust(w) if i == column else " " * w for i, w in enumerate(widths)]
        lines.append("  ".join([first.rjust(left), *cells]))
    return "\n".join(line.rstrip() for line in lines)


class StepTexts:
    """Says what steps of an engine are; `segment`, if given, lets it name addresses."""

    def __init__(self, engine: StepEngine, segment: Segment | None) -> None:
        self.engine = engine
        self.segment = segment

    def step(self, site: int, arguments: Iterable[int]) -> str:
        """Say what the step at stop `site` with these arguments is."""
        stop = self.engine.sites[site]
        words = ", ".join([self.value(a) for a in arguments][: self.engine.arity[site]])
        if stop.primitive == "enter":
            return f"{stop.function}({words})"
        if stop.primitive == "return":
            return f"{stop.function}:{stop.line} returns {words}".rstrip()
        return f"{stop.function}:{stop.line} {stop.primitive}({words})"

    def value(self, value: int) -> str:
        """Name an address inside the segment; small numbers in decimal, large in hexadecimal."""
        return value_text(self.segment, value)

    def table(self, executed: Sequence[Executed], names: Sequence[str], first: int = 0) -> str:
        """Table of the steps from index `first` on, a column per CPU."""
        rows = [
            (str(number), e.cpu, self._executed(e))
            for number, e in enumerate(executed[first:], first + 1)
        ]
        return columns("step", rows, names)

    def _executed(self, executed: Executed) -> str:
        if executed.site == SHOWN:
            change = f"{self.value(executed.old)} -> {self.value(executed.new)}"
            return f"-- {self.value(executed.arguments[0])} becomes visible: {change}"
        text = self.step(executed.site, executed.arguments)
        if executed.old != executed.new:
            text += f": {self.value(executed.old)} -> {self.value(executed.new)}"
        elif self.engine.sites[executed.site].primitive in _SHOW_VALUE:
            text += f" = {self.value(executed.old)}"
        if executed.note:
            text += " (held back)" if executed.note == "+" else " (early)"
        return " " * max(0, executed.depth - 1) + text

    def call_line(self, caller: str, callee: str, last: int) -> int:
        """Line of the call of `callee` in `caller`: the first from line `last` on, else any.

        It is `last` if an oracle stands in between.
        """
        functions = self.engine.program.functions
        name = functions[callee].tree.name
        lines = sorted(
            node.lineno
            for node in ast.walk(functions[caller].tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in (name, callee)
        )
        return next((line for line in lines if line >= last), lines[0] if lines else last)
