# SPDX-License-Identifier: MIT
"""Read the histories that the oracle `history` leaves in a segment, and show them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spfemu.engines.history import columns, value_text
from spfemu.engines.source import Program
from spfemu.engines.steps import Site
from spfemu.layout import HISTORY_ENTRIES, HISTORY_WORDS
from spfemu.segment import Segment


@dataclass(frozen=True)
class Step:
    """A call (`primitive` of the site is "enter") or return of a kernel function.

    `word` is the first argument or result; `depth` counts the calls around it as far as the
    history of its CPU goes back.
    """

    cpu: int
    time: int
    site: Site
    word: int
    depth: int


def read_history(segment: Segment, sites: Sequence[Site]) -> list[Step]:
    """Return what all CPUs did last, in order of time.

    `sites` are those of the engine that ran.  CPUs that still run are read as far as they are.
    """
    found = [step for cpu in range(segment.geometry.nr_cpus) for step in _of(segment, sites, cpu)]
    return sorted(found, key=lambda step: step.time)


def _of(segment: Segment, sites: Sequence[Site], cpu: int) -> list[Step]:
    own = segment.stress_cpus[cpu]
    count = int(own["nr_history"])
    ring = own["history"].reshape(HISTORY_ENTRIES, HISTORY_WORDS)
    first = max(0, count - HISTORY_ENTRIES)
    entries = ring[np.arange(first, count) % HISTORY_ENTRIES].tolist()
    steps = []
    depth = 0
    for time, number, word in entries:
        site = sites[number]
        if site.primitive == "return":
            depth -= 1
        steps.append((time, site, word, depth))
        if site.primitive == "enter":
            depth += 1
    lowest = min((step[3] for step in steps), default=0)
    return [Step(cpu, time, site, word, deep - lowest) for time, site, word, deep in steps]


class HistoryTexts:
    """Says what steps are; `program` is the one that ran in `segment`."""

    def __init__(self, program: Program, segment: Segment) -> None:
        self.program = program
        self.segment = segment

    def step(self, step: Step) -> str:
        """Say what a step is: ``find_vma(mm0)`` or ``find_vma:31 returns vma[3]``."""
        function = self.program.functions[step.site.function]
        word = value_text(self.segment, step.word)
        if step.site.primitive == "enter":
            more = ", ..." if len(function.parameters) > 1 else ""
            return f"{function.tree.name}({word if function.parameters else ''}{more})"
        returned = f"{function.tree.name}:{step.site.line} returns"
        return f"{returned} {word}" if function.results else returned

    def table(self, steps: Sequence[Step], names: Sequence[str]) -> str:
        """Table of steps, a column per CPU, with the cycles from each to the last one.

        A call with nothing until its return is one line: ``page_address(cpu0, ...) = frame[5]``.
        """
        end = steps[-1].time if steps else 0
        lowest: dict[int, int] = {}
        for step in steps:
            lowest[step.cpu] = min(step.depth, lowest.get(step.cpu, step.depth))
        rows: list[tuple[str, int, str]] = []
        called: Step | None = None  # what the last row shows
        for step in steps:
            text = " " * (step.depth - lowest[step.cpu]) + self.step(step)
            if called is not None and _ends(step, called):
                text = rows.pop()[2] + self._result(step)
            rows.append((str(step.time - end), step.cpu, text))
            called = step
        return columns("cycles", rows, names)

    def _result(self, step: Step) -> str:
        has_result = self.program.functions[step.site.function].results
        return f" = {value_text(self.segment, step.word)}" if has_result else ""


def _ends(step: Step, called: Step) -> bool:
    """Tell whether `step` is the return of the call `called`."""
    return (
        called.site.primitive == "enter"
        and step.site.primitive == "return"
        and (called.cpu, called.site.function) == (step.cpu, step.site.function)
    )
