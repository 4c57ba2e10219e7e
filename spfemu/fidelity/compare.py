# SPDX-License-Identifier: MIT
"""Find and describe the first difference between what both sides observed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spfemu.fidelity.channel import (
    ENTRY_WORDS,
    RECORD_WORDS,
    VM_FILE,
    VM_PRIVATE,
    Record,
)
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.pair import Streams
from spfemu.fidelity.program import WINDOW_PAGES, Bases, Operation, Window, number, place
from spfemu.layout import PAGE_SIZE, WORD
from spfemu.mm.flags import Prot

Entry = tuple[int, int, int, int]

ERRNO_MAX = 4095
_PLACED_BELOW = 1 << 43
"""How far below the window `top` an address is still shown relative to it [bytes]."""


@dataclass(frozen=True)
class Observation:
    """What was seen after one operation.

    `vmas` are (start, end, rights, offset), `pages` the present ones as (address, first word,
    digest, 0).
    """

    result: int
    value: int
    faults: int
    vmas: tuple[Entry, ...]
    pages: tuple[Entry, ...]


@dataclass(frozen=True)
class Difference:
    """The first difference: after operation `index`, in `aspect`.

    `emulated` and `host` say what each side had.
    """

    index: int
    aspect: str
    emulated: str
    host: str


def decode(stream: NDArray[np.int64]) -> Iterator[Observation]:
    """Take a stream apart into observations."""
    words = stream.tolist()
    at = 0
    while at < len(words):
        nr_vmas = words[at + Record.NR_VMAS // WORD]
        nr_pages = words[at + Record.NR_PAGES // WORD]
        vmas = at + RECORD_WORDS
        pages = vmas + nr_vmas * ENTRY_WORDS
        end = pages + nr_pages * ENTRY_WORDS
        result, value, faults = words[at : at + 3]
        yield Observation(
            result, value, faults, _entries(words[vmas:pages]), _entries(words[pages:end])
        )
        at = end


def _entries(words: list[int]) -> tuple[Entry, ...]:
    columns = (words[i::ENTRY_WORDS] for i in range(ENTRY_WORDS))
    return tuple(zip(*columns, strict=True))


class Names:
    """Writes addresses as offsets in windows."""

    def __init__(self, bases: Bases) -> None:
        self.bases = bases

    def __call__(self, address: int) -> str:
        """Return an address the way that listings have it."""
        for window, pages in WINDOW_PAGES.items():
            offset = address - self.bases[window]
            if 0 <= offset <= pages * PAGE_SIZE:
                return place(window, offset)
        below = self.bases[Window.TOP] - address
        if 0 < below < _PLACED_BELOW:
            return f"{Window.TOP} - {number(below)}"
        return place(Window.ABSOLUTE, address)

    def result(self, operation: Operation, seen: Observation) -> str:
        """Return what a call returned, or what a touch did."""
        if -ERRNO_MAX <= seen.result < 0:
            return errno.errorcode.get(-seen.result, str(seen.result))
        if operation.kind in (Kind.MMAP, Kind.MREMAP, Kind.BRK):
            return self(seen.result)
        if operation.kind is Kind.MINCORE:
            return f"{seen.result}, pages {seen.value:#b}"
        if operation.kind is Kind.READ:
            return f"{seen.value:#x}" if seen.result == 0 else str(seen.result)
        return str(seen.result)

    def vmas(self, entries: Sequence[Entry]) -> str:
        """Return mappings as /proc/PID/maps has them."""
        lines = [f"{self(s)} to {self(e)} {rights(r)}{_of_file(r, o)}" for s, e, r, o in entries]
        return ", ".join(lines) or "nothing"

    def pages(self, entries: Sequence[Entry]) -> str:
        """Return addresses of pages."""
        return ", ".join(self(entry[0]) for entry in entries) or "none"


def rights(bits: int) -> str:
    """Return rights as "rw-p"."""
    letters = [(Prot.READ, "r"), (Prot.WRITE, "w"), (Prot.EXEC, "x")]
    text = "".join(letter if bits & bit else "-" for bit, letter in letters)
    return text + ("p" if bits & VM_PRIVATE else "s")


def _of_file(bits: int, offset: int) -> str:
    return f" of a file from {number(offset)} on" if bits & VM_FILE else ""


def first_difference(streams: Streams, bases: Bases) -> Difference | None:
    """Return the first difference, or None."""
    if streams.equal:
        return None
    names = Names(bases)
    theirs = list(decode(streams.host))
    ours = list(decode(streams.emulated))
    for index, (here, there) in enumerate(zip(ours, theirs, strict=False)):
        if here != there:
            return Difference(index, *_describe(streams.operations[index], here, there, names))
    index = len(ours)
    result = names.result(streams.operations[index], theirs[index])
    return Difference(index, "emulator", streams.stopped, f"returned {result}")


def _describe(
    operation: Operation, ours: Observation, theirs: Observation, names: Names
) -> tuple[str, str, str]:
    """Say in which aspect two observations differ and what both are."""
    if (ours.result, ours.value) != (theirs.result, theirs.value):
        return "result", names.result(operation, ours), names.result(operation, theirs)
    if ours.faults != theirs.faults:
        return "minor faults", str(ours.faults), str(theirs.faults)
    if ours.vmas != theirs.vmas:
        return "mappings", *_only(ours.vmas, theirs.vmas, names.vmas)
    here, there = {p[0] for p in ours.pages}, {p[0] for p in theirs.pages}
    if here != there:
        return (
            "present pages",
            names.pages([p for p in ours.pages if p[0] not in there]),
            names.pages([p for p in theirs.pages if p[0] not in here]),
        )
    return "contents", *_only(ours.pages, theirs.pages, lambda pages: _contents(pages, names))


def _only(
    ours: Sequence[Entry], theirs: Sequence[Entry], show: Callable[[Sequence[Entry]], str]
) -> tuple[str, str]:
    """Show the entries that only one side has."""
    return (
        show([entry for entry in ours if entry not in theirs]),
        show([entry for entry in theirs if entry not in ours]),
    )


def _contents(pages: Sequence[Entry], names: Names) -> str:
    return ", ".join(f"{names(a)}: {word:#x}, digest {digest:#x}" for a, word, digest, _ in pages)
