# SPDX-License-Identifier: MIT
"""What is wrong with a line of a file that is read on."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN_BYTES = 60
"""So much of a line is quoted."""
KEPT = 10
"""So many problems are kept with their text; the others are counted."""


class TraceError(ValueError):
    """One line means nothing; the message says why, without the line number."""


@dataclass(frozen=True)
class Problem:
    """A line, counted from 1, and what is wrong with it."""

    line: int
    message: str


@dataclass
class Problems:
    """All problems of one file."""

    name: str
    kept: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, message: str) -> None:
        """Note a problem."""
        self.count += 1
        if len(self.kept) < KEPT:
            self.kept.append(Problem(line, message))

    def texts(self) -> list[str]:
        """Return a line for each problem that is kept, and one for the others."""
        texts = [f"{self.name}:{p.line}: {p.message}" for p in self.kept]
        others = self.count - len(self.kept)
        if others:
            texts.append(f"{self.name}: {others} more lines that could not be used")
        return texts


def quote(text: str) -> str:
    """Return the beginning of a line, fit for a message."""
    shown = text if len(text) <= SHOWN_BYTES else text[:SHOWN_BYTES] + "..."
    return ascii(shown)
