# SPDX-License-Identifier: MIT
"""The format of /proc/PID/maps: read, written, compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spfemu.layout import PAGE_MASK, PAGE_SIZE
from spfemu.mm.flags import TASK_SIZE, Prot
from spfemu.trace.problems import Problems, TraceError, quote

_LINE = re.compile(
    r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-])([w-])([x-])([ps]) ([0-9a-f]{1,16})"
    r" ([0-9a-f]{2,}:[0-9a-f]{2,}) (\d+)(?: +(.*))?"
)
_NAME_COLUMN = 73
_RIGHTS = (Prot.READ, Prot.WRITE, Prot.EXEC)
USER_END = 1 << 63
"""From here on addresses are the kernel's ([vsyscall])."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line.  `prot` are rights as mmap has them, `offset` is in bytes."""

    start: int
    end: int
    prot: int
    shared: bool
    offset: int = 0
    name: str = ""
    device: str = "00:00"
    inode: int = 0

    @property
    def is_file(self) -> bool:
        """Tell whether a file is mapped, rather than anonymous or special memory."""
        return self.inode != 0 or self.name.startswith("/")

    def __str__(self) -> str:
        """Return the line, as the kernel writes it."""
        rights = "".join(
            letter if self.prot & bit else "-"
            for letter, bit in (("r", Prot.READ), ("w", Prot.WRITE), ("x", Prot.EXEC))
        )
        shared = "s" if self.shared else "p"
        text = (
            f"{self.start:08x}-{self.end:08x} {rights}{shared} {self.offset:08x} "
            f"{self.device} {self.inode} "
        )
        return (text.ljust(_NAME_COLUMN) + self.name) if self.name else text


def parse_line(text: str) -> Mapping | None:
    """Read one line; None for what lies in the kernel's half.  Raises TraceError."""
    match = _LINE.fullmatch(text.rstrip("\n"))
    if match is None:
        raise TraceError(f"this is no line of /proc/PID/maps: {quote(text)}")
    start, end, offset = int(match[1], 16), int(match[2], 16), int(match[7], 16)
    if start >= USER_END:
        return None
    if not start < end <= TASK_SIZE + PAGE_SIZE or (start | end) & ~PAGE_MASK:
        raise TraceError(f"no mapping can be at {start:#x} to {end:#x}")
    if offset >= USER_END:
        raise TraceError(f"no mapping can have the offset {offset:#x}")
    prot = sum(
        int(bit)
        for bit, letter in zip(
            (Prot.READ, Prot.WRITE, Prot.EXEC), match.group(3, 4, 5), strict=True
        )
        if letter != "-"
    )
    name = _unescape(match[10] or "")
    return Mapping(start, end, prot, match[6] == "s", offset, name, match[8], int(match[9][:20]))


def _unescape(name: str) -> str:
    """Undo the only escape that the kernel uses: that of a line's end."""
    return name.rstrip().replace("\\012", "\n")


def parse(lines: Iterable[str], problems: Problems, first_line: int = 1) -> tuple[Mapping, ...]:
    """Read a whole map; lines that cannot be used are noted and left out."""
    mappings: list[Mapping] = []
    for line, text in enumerate(lines, first_line):
        try:
            mapping = parse_line(text)
        except TraceError as error:
            problems.add(line, str(error))
            continue
        if mapping is None:
            continue
        if mappings and mapping.start < mappings[-1].end:
            problems.add(line, f"the mapping at {mapping.start:#x} overlaps the one before")
            continue
        mappings.append(mapping)
    return tuple(mappings)


def text(mappings: Iterable[Mapping]) -> str:
    """Return the contents of a maps file."""
    return "".join(str(m).replace("\n", "\\012") + "\n" for m in mappings)


def compared(mapping: Mapping) -> tuple[int, int, int, bool, int]:
    """Return what two maps must agree in: boundaries, rights, sharing, and a file's offset."""
    return (
        mapping.start,
        mapping.end,
        mapping.prot,
        mapping.shared,
        mapping.offset if mapping.is_file else 0,
    )


@dataclass(frozen=True)
class Difference:
    """Mappings that only one of two maps has."""

    ours: tuple[Mapping, ...]
    theirs: tuple[Mapping, ...]

    def __bool__(self) -> bool:
        """Tell whether the maps differ at all."""
        return bool(self.ours or self.theirs)

    def lines(self) -> list[str]:
        """Return the mappings as lines: "-" the recording's, "+" the replay's."""
        marked = [(m, "-") for m in self.theirs] + [(m, "+") for m in self.ours]
        return [f"{mark} {m}" for m, mark in sorted(marked, key=lambda e: (e[0].start, e[1]))]


def difference(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> Difference:
    """Compare two maps by `compared`."""
    here = {compared(m) for m in ours}
    there = {compared(m) for m in theirs}
    return Difference(
        tuple(m for m in ours if compared(m) not in there),
        tuple(m for m in theirs if compared(m) not in here),
    )
