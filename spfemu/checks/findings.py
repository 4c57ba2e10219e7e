# SPDX-License-Identifier: MIT
"""What the checks share: collecting violations, addresses to indexes, lists, owners.

Nothing in the segment is trusted: an address may point anywhere, a list may have no end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int64]

LIMIT = 8
"""Violations of one kind that are reported one by one."""
END, ASTRAY = -1, -2
"""Instead of an index: the link is 0, or no address of a slot."""


class Findings:
    """The violations found so far, each a sentence."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Report one violation."""
        self.messages.append(message)

    def each(self, items: Iterable[Any], describe: Callable[[Any], str]) -> None:
        """Report one violation per item, the first ones in full and then how many more."""
        iterator = iter(items)
        shown = [describe(item) for item in islice(iterator, LIMIT)]
        more = sum(1 for _ in iterator)
        if more:
            shown[-1] += f" (and {more} more like this)"
        self.messages += shown


@dataclass(frozen=True)
class Slots:
    """An array of equal slots in the segment."""

    name: str
    start: int
    size: int
    count: int

    def index(self, address: int) -> int:
        """Index of the slot at `address`; END for 0, ASTRAY if none begins there."""
        if address == 0:
            return END
        index, rest = divmod(address - self.start, self.size)
        return index if rest == 0 and 0 <= index < self.count else ASTRAY

    def indexes(self, addresses: Words) -> Words:
        """Do the same for an array of addresses."""
        # the difference of two arbitrary words may wrap around, and must not come out in range
        inside = (addresses >= self.start) & (addresses < self.start + self.size * self.count)
        offset = np.where(inside, addresses - self.start, 1)
        found = np.where(offset % self.size == 0, offset // self.size, ASTRAY)
        return np.where(addresses == 0, END, np.where(inside, found, ASTRAY))

    def address(self, index: int) -> int:
        """Address of slot `index`."""
        return self.start + index * self.size

    def describe(self, index: int) -> str:
        """Name a slot for messages."""
        return f"{self.name} {index} at {self.address(index):#x}"


def walk(findings: Findings, name: str, slots: Slots, links: list[int], head: int) -> list[int]:
    """Follow a list of `slots` from the address `head`; `links` are indexes as of `Slots.indexes`.

    Returns the slots on it, up to the point where it leaves the slots or meets itself, which is
    reported.
    """
    found: list[int] = []
    seen: set[int] = set()
    index = slots.index(head)
    while index >= 0:
        if index in seen:
            findings.add(f"{name} runs in a circle through {slots.describe(index)}")
            return found
        seen.add(index)
        found.append(index)
        index = links[index]
    if index == ASTRAY:
        where = f"from {slots.describe(found[-1])}" if found else f"from its head {head:#x}"
        findings.add(f"{name} leads {where} to what is no {slots.name}")
    return found


@dataclass
class Owners:
    """Who owns each slot: every one has to be claimed exactly once."""

    findings: Findings
    slots: Slots
    names: list[str] = field(default_factory=lambda: [""])

    def __post_init__(self) -> None:
        self.owner = np.zeros(self.slots.count, np.int64)

    def claim(self, indexes: Words | list[int], name: str) -> Words:
        """Say that `name` owns the slots; returns those that nobody had claimed, once each."""
        self.names.append(name)
        unique, counts = np.unique(np.asarray(indexes, np.int64), return_counts=True)
        taken = self.owner[unique]
        self.findings.each(
            np.flatnonzero((taken != 0) | (counts > 1)),
            lambda i: (
                f"{self.slots.describe(int(unique[i]))} has two owners: {name} and "
                f"{self.names[int(taken[i])] or 'once more ' + name}"
            ),
        )
        fresh: Words = unique[taken == 0]
        self.owner[fresh] = len(self.names) - 1
        return fresh

    def owner_of(self, index: int) -> str:
        """Name of the owner of a slot, or an empty string."""
        return self.names[int(self.owner[index])]

    def lost(self) -> Words:
        """The slots that nobody has claimed."""
        return np.flatnonzero(self.owner == 0)
