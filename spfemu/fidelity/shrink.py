# SPDX-License-Identifier: MIT
"""Shorten a program that shows a difference.

Shortlex: fewer operations first, then simpler ones.  Whether a candidate is better depends on the
candidate alone, and candidates come in a fixed order, so the outcome does too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.program import WINDOW_PAGES, Operation, Window, unsafe
from spfemu.layout import PAGE_MASK, PAGE_SIZE
from spfemu.mm.flags import Map, Prot

MAX_TRIALS = 5000
"""After so many runs the shortest program so far has to do."""

Judge = Callable[[Sequence[Operation]], int | None]
"""Runs a program; returns the index of the operation after which the sides differ, or None."""


def shrink(operations: Sequence[Operation], judge: Judge) -> list[Operation]:
    """Return a shortest program that `judge` still finds different.

    Raises ValueError if it does not find `operations` different.
    """
    return _Shrinker(operations, judge).run()


@dataclass
class _Shrinker:
    best: list[Operation]
    judge: Judge
    trials: int = 0

    def __init__(self, operations: Sequence[Operation], judge: Judge) -> None:
        self.judge = judge
        self.trials = 0
        index = judge(operations)
        if index is None:
            raise ValueError("both sides agree on this program")
        self.best = list(operations[: index + 1])

    def run(self) -> list[Operation]:
        before: list[Operation] = []
        while before != self.best and self.trials < MAX_TRIALS:
            before = self.best
            self._remove()
            self._simplify()
            self._move_to_arena()
            self._close_up()
        return self.best

    def _accept(self, candidate: list[Operation]) -> bool:
        """Take the candidate, up to its difference, if it may be run and has one."""
        if self.trials >= MAX_TRIALS or any(unsafe(o) for o in candidate):
            return False
        self.trials += 1
        index = self.judge(candidate)
        if index is None:
            return False
        self.best = candidate[: index + 1]
        return True

    def _remove(self) -> None:
        """Leave out ever smaller runs of operations (delta debugging)."""
        size = len(self.best) // 2
        while size >= 1:
            start = 0
            while start < len(self.best):
                if not self._accept(self.best[:start] + self.best[start + size :]):
                    start += size
            size //= 2

    def _simplify(self) -> None:
        """Replace each operation by the simplest one that will do."""
        index = 0
        while index < len(self.best):
            for simpler in simplifications(self.best[index]):
                if self._accept([*self.best[:index], simpler, *self.best[index + 1 :]]):
                    break
            index += 1

    def _move_to_arena(self) -> None:
        """Do in the arena what is done in another window."""
        for window in WINDOW_PAGES:
            candidate = [
                msgspec.structs.replace(o, window=Window.ARENA)
                if o.window is window and o.kind is not Kind.BRK
                else o
                for o in self.best
            ]
            if candidate != self.best:
                self._accept(candidate)

    def _close_up(self) -> None:
        """Take single pages out of the address space, as if they had never been there."""
        for window, pages in WINDOW_PAGES.items():
            for page in reversed(range(pages)):
                candidate = [without_page(o, window, page) for o in self.best]
                if candidate != self.best:
                    self._accept(candidate)


def without_page(operation: Operation, window: Window, page: int) -> Operation:
    """Return an operation as it is without a page of a window: what lies beyond moves up.

    The window at the top keeps its end, where the kernel places mappings, others their start.
    """
    if operation.window is not window:
        return operation
    first, rest = divmod(operation.address, PAGE_SIZE)
    pages = max((rest + operation.length + PAGE_SIZE - 1) // PAGE_SIZE, 1)
    address, length = operation.address, operation.length
    if first <= page < first + pages:
        if not 1 < pages <= WINDOW_PAGES[window]:
            return operation
        length -= PAGE_SIZE
        address += PAGE_SIZE if window is Window.TOP else 0
    elif window is Window.TOP:
        address += PAGE_SIZE if first < page else 0
    else:
        address -= PAGE_SIZE if first > page else 0
    return msgspec.structs.replace(operation, address=address, length=length)


def complexity(operation: Operation) -> tuple[int, ...]:
    """Order operations: a candidate must be below what it replaces, so shrinking ends."""
    windows = [Window.ARENA, *(w for w in WINDOW_PAGES if w is not Window.ARENA), Window.ABSOLUTE]
    return (
        _FLAGS.index(operation.flags) if operation.flags in _FLAGS else len(_FLAGS),
        windows.index(operation.window),
        operation.length % (1 << 64),
        int(operation.address % PAGE_SIZE != 0),
        operation.file,
        operation.offset % (1 << 64),
        operation.prot.bit_count(),
        _PROTS.index(operation.prot) if operation.prot in _PROTS else len(_PROTS),
        operation.address % (1 << 64),
        operation.value % (1 << 64),
    )


_WITH_RANGE = (
    *(Kind.MMAP, Kind.MUNMAP, Kind.MPROTECT, Kind.MADVISE, Kind.MREMAP, Kind.MLOCK, Kind.MLOCK2),
    *(Kind.MUNLOCK, Kind.MINCORE, Kind.MSYNC, Kind.READ, Kind.WRITE),
)
_PRIVATE = int(Map.PRIVATE | Map.ANONYMOUS)
_FLAGS = (
    0,
    int(_PRIVATE | Map.FIXED),
    _PRIVATE,
    int(_PRIVATE | Map.FIXED_NOREPLACE),
    int(_PRIVATE | Map.FIXED | Map.FIXED_NOREPLACE),
    int(Map.SHARED | Map.ANONYMOUS | Map.FIXED),
    int(Map.SHARED | Map.ANONYMOUS),
    int(Map.PRIVATE | Map.FIXED),
    int(Map.PRIVATE),
    int(Map.SHARED | Map.FIXED),
    int(Map.SHARED),
)
_PROTS = tuple(int(p) for p in (Prot.NONE, Prot.READ, Prot.READ | Prot.WRITE, Prot.WRITE))


def simplifications(operation: Operation) -> Iterator[Operation]:
    """Yield simpler operations of the same kind, the simplest first."""
    candidates = {c for c in _candidates(operation) if complexity(c) < complexity(operation)}
    yield from sorted(candidates, key=complexity)


def _candidates(operation: Operation) -> Iterator[Operation]:
    change = msgspec.structs.replace
    aligned = operation.address & PAGE_MASK
    if operation.window in WINDOW_PAGES:
        yield change(operation, address=aligned)
        yield change(operation, address=0)
        yield change(operation, address=aligned // 2 & PAGE_MASK)
        yield change(operation, address=max(aligned - PAGE_SIZE, 0))
    elif operation.kind in _WITH_RANGE:
        yield change(operation, window=Window.ARENA, address=0)
    length = operation.length
    if length > 0:
        pages = (length + PAGE_SIZE - 1) & PAGE_MASK
        for shorter in (PAGE_SIZE, pages // 2 & PAGE_MASK, pages - PAGE_SIZE):
            if 0 < shorter < length:
                yield change(operation, length=shorter)
    if operation.kind in (Kind.MMAP, Kind.MPROTECT):
        for prot in _PROTS:
            yield change(operation, prot=prot)
    if operation.kind is Kind.MMAP:
        for flags in _FLAGS[1:]:
            yield change(operation, flags=flags)
            yield change(operation, flags=flags, file=0, offset=0)
        for file in range(1, operation.file):
            yield change(operation, file=file)
        for offset in (0, operation.offset & PAGE_MASK, operation.offset // 2 & PAGE_MASK):
            yield change(operation, offset=offset)
    if operation.kind is Kind.WRITE:
        yield change(operation, value=1)
    if operation.kind is Kind.PWRITE:
        yield change(operation, value=1)
        yield change(operation, offset=operation.offset & PAGE_MASK)
        yield change(operation, offset=0)
