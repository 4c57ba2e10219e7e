# SPDX-License-Identifier: MIT
"""How many frames a recording can hold at one time: no address has more than one page.

So the sum over all calls, of which most are undone by later ones, is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from spfemu.layout import PAGE_MASK, PAGE_SIZE
from spfemu.mm.flags import PGDIR_SHIFT, PMD_SHIFT, PUD_SHIFT
from spfemu.replay.encoding import Step
from spfemu.trace.calls import Call

READ_AROUND = 16 * PAGE_SIZE
"""What reading a page of a file brings along on either side [bytes]."""
FILE_SHIFT = 48
"""Above the offset stands the number of the file."""
Range = tuple[int, int]


def frames_of(entries: Iterable[Sequence[int]], pages: int) -> int:
    """Return how many frames entries of a table need that touch `pages` pages of each mapping."""
    memory: list[Range] = []
    files: list[Range] = []
    for entry in entries:
        memory += _touched(entry, pages)
        files += _read(entry, pages)
    return pages_of(memory) + tables_of(memory) + 2 * pages_of(files)


def _touched(entry: Sequence[int], pages: int) -> Iterator[Range]:
    """Yield the ranges in which an entry leaves pages."""
    kind, a, b, c, d, e = entry[:6]
    start, length = a, 0
    if kind in (Call.MMAP, Call.MPROTECT, Call.MLOCK, Call.MLOCK2):
        length = b
    elif kind == Call.BRK:
        start, length = b, c
    elif kind == Step.PLACE:
        length = b - a
    elif kind == Call.MREMAP:
        start = e if d & 2 else a
        # what moves along, and what is new
        yield _cut(start, b, pages)
        start, length = start + b, c - b
    if length > 0:
        locked = kind in (Call.MLOCK, Call.MLOCK2)
        yield (start, start + length) if locked else _cut(start, length, pages)


def _cut(start: int, length: int, pages: int) -> Range:
    return start & PAGE_MASK, start + min(length, pages * PAGE_SIZE)


def _read(entry: Sequence[int], pages: int) -> Iterator[Range]:
    """Yield the range of a file's pages that an entry brings into the cache."""
    file, offset = entry[6:8]
    if file:
        length = entry[2] - entry[1] if entry[0] == Step.PLACE else entry[2]
        offset = offset * PAGE_SIZE if entry[0] == Step.PLACE else offset
        start = (file << FILE_SHIFT) + offset
        yield start - READ_AROUND, start + min(length, pages * PAGE_SIZE) + READ_AROUND


def pages_of(ranges: Iterable[Range]) -> int:
    """Return how many pages there are in ranges that may overlap."""
    return sum((end - start) // PAGE_SIZE for start, end in merged(ranges, PAGE_SIZE))


def tables_of(ranges: Sequence[Range]) -> int:
    """Return how many page tables map them, beside the top-level one."""
    return sum(
        (end - start) >> shift
        for shift in (PMD_SHIFT, PUD_SHIFT, PGDIR_SHIFT)
        for start, end in merged(ranges, 1 << shift)
    )


def merged(ranges: Iterable[Range], unit: int) -> Iterator[Range]:
    """Yield the ranges in whole units, those that touch each other as one."""
    last: Range | None = None
    for start, end in sorted(ranges):
        start, end = start & -unit, (end + unit - 1) & -unit  # noqa: PLW2901
        if last is not None and start <= last[1]:
            last = last[0], max(last[1], end)
            continue
        if last is not None:
            yield last
        last = start, end
    if last is not None:
        yield last
