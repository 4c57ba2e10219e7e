# SPDX-License-Identifier: MIT
"""Random programs.

Each program has a character of its own, drawn first: how often it does what, which rights it uses
and where it works.  Programs that leave something out reach states that an even mixture seldom
does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from spfemu.fidelity.channel import FILE_SIZES
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.known import KnownDifference
from spfemu.fidelity.program import WINDOW_PAGES, Operation, Window, unsafe
from spfemu.layout import PAGE_SIZE, WORD
from spfemu.mm.flags import PMD_SIZE, TASK_SIZE, Madv, Map, Mremap, Msync, Prot
from spfemu.mm.map_type import MAP_TYPE

PROGRAM_OPERATIONS = 128
"""Longest program."""

_KINDS = {
    Kind.MMAP: 22,
    Kind.MUNMAP: 11,
    Kind.MPROTECT: 18,
    Kind.MADVISE: 8,
    Kind.BRK: 8,
    Kind.MREMAP: 10,
    Kind.MLOCK: 3,
    Kind.MLOCK2: 2,
    Kind.MUNLOCK: 4,
    Kind.MINCORE: 2,
    Kind.FTRUNCATE: 4,
    Kind.MSYNC: 3,
    Kind.PWRITE: 4,
    Kind.FORK: 2,
    Kind.SWITCH: 5,
    Kind.EXIT: 1,
    Kind.READ: 12,
    Kind.WRITE: 21,
}
_WINDOWS = {Window.LOW: 1, Window.HEAP: 4, Window.ARENA: 12, Window.TOP: 4}
_PROTS = (
    Prot.NONE,
    Prot.READ,
    Prot.READ | Prot.WRITE,
    Prot.READ | Prot.WRITE,
    Prot.WRITE,
    Prot.EXEC,
    Prot.READ | Prot.EXEC,
    Prot.READ | Prot.WRITE | Prot.EXEC,
)
_PRIVATE = int(Map.PRIVATE | Map.ANONYMOUS)
_PLACEMENTS = {
    _PRIVATE | Map.FIXED: 10,
    _PRIVATE | Map.FIXED_NOREPLACE: 3,
    _PRIVATE | Map.FIXED | Map.FIXED_NOREPLACE: 1,
    _PRIVATE: 6,
}
_ADVICES = {
    Madv.DONTNEED: 10,
    **dict.fromkeys(
        (
            *(Madv.NORMAL, Madv.RANDOM, Madv.SEQUENTIAL, Madv.WILLNEED, Madv.FREE, Madv.COLD),
            *(Madv.PAGEOUT, Madv.DONTFORK, Madv.DOFORK, Madv.DONTDUMP, Madv.DODUMP),
            *(Madv.WIPEONFORK, Madv.KEEPONFORK, Madv.HUGEPAGE, Madv.NOHUGEPAGE),
            *(Madv.POPULATE_READ, Madv.POPULATE_WRITE, Madv.DONTNEED_LOCKED),
        ),
        1,
    ),
}
_EXTRAS = (
    *(Map.GROWSDOWN, Map.LOCKED, Map.NORESERVE, Map.POPULATE, Map.POPULATE | Map.NONBLOCK),
    *(Map.STACK, Map.LOCKED | Map.GROWSDOWN, Map.NORESERVE | Map.POPULATE),
)
"""Flags of mmap that do not say where."""
_REMAPS = (
    *(Mremap.MAYMOVE, Mremap.MAYMOVE | Mremap.FIXED, Mremap.MAYMOVE | Mremap.FIXED),
    *(Mremap(0), Mremap.MAYMOVE | Mremap.DONTUNMAP),
    Mremap.MAYMOVE | Mremap.FIXED | Mremap.DONTUNMAP,
)
_MSYNCS = (*(Msync.SYNC, Msync.ASYNC, Msync.SYNC | Msync.INVALIDATE), Msync.INVALIDATE, 0)
_LARGE = (PMD_SIZE, 2 * PMD_SIZE, PMD_SIZE + PAGE_SIZE, 3 * PMD_SIZE - 1, 1 << 30, 1 << 40)
"""Lengths for mappings that the kernel places; they are never touched."""
_IMPOSSIBLE = (0, TASK_SIZE + PAGE_SIZE, 1 << 63, -1, -PAGE_SIZE)
"""Lengths that no mapping can have."""
_BEYOND = (TASK_SIZE - PAGE_SIZE, TASK_SIZE + PAGE_SIZE, 1 << 62, 1 << 63)
"""Lengths that reach out of the address space."""
_NOWHERE = (TASK_SIZE, TASK_SIZE + PAGE_SIZE, 1 << 62, 1 << 63, -PAGE_SIZE)
"""Addresses that no mapping can have."""

ARENA_SIZE = WINDOW_PAGES[Window.ARENA] * PAGE_SIZE
TOP_SIZE = WINDOW_PAGES[Window.TOP] * PAGE_SIZE

T = TypeVar("T")


class Generator:
    """Makes the programs of one seed; program `number` is always the same.

    What concerns one of the known differences is left out.
    """

    def __init__(self, seed: int, known: Sequence[KnownDifference] = ()) -> None:
        self.seed = seed
        self.known = known

    def program(self, number: int) -> list[Operation]:
        """Return a program of random length."""
        rng = random.Random((self.seed << 64) | number)
        author = _Author(rng)
        operations: list[Operation] = []
        length = rng.randint(1, PROGRAM_OPERATIONS)
        while len(operations) < length:
            operation = author.operation()
            if not any(difference.concerns(operation) for difference in self.known):
                operations.append(operation)
        return operations


class _Author:
    """The character of one program."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        kinds, weights = self._lean(_KINDS)
        # without mappings there is nothing to see
        self.kinds = (
            kinds,
            [max(w, 8) if k is Kind.MMAP else w for k, w in zip(kinds, weights, strict=True)],
        )
        self.windows = self._lean(_WINDOWS)
        self.placements = self._lean(_PLACEMENTS)
        self.prots = [rng.choice(_PROTS) for _ in range(rng.randint(2, 4))]
        self.longest = rng.choice((2, 4, 8, 16))
        # few distinct places make mappings meet
        self.pages = rng.choice((8, 16, 40))
        self.advices = self._lean(_ADVICES)
        self.extras = rng.choice((0.0, 0.1, 0.5))
        self.odd = rng.choice((0.0, 0.02, 0.1))
        self.files = rng.choice((0.0, 0.2, 0.7))
        self.shared = rng.choice((0.2, 0.5, 0.8))
        # how much it works on what it has mapped, and that
        self.loyalty = rng.choice((0.2, 0.8, 0.95))
        self.mapped: list[tuple[Window, int, int]] = []

    def _lean(self, weights: dict[T, int]) -> tuple[Sequence[T], Sequence[float]]:
        """Return the choices with weights changed at random, some to nothing."""
        leaning = [w * self.rng.choice((0, 0.5, 1, 1, 2)) for w in weights.values()]
        if not any(leaning):
            leaning = [float(w) for w in weights.values()]
        return list(weights), leaning

    def _choose(self, choices: tuple[Sequence[T], Sequence[float]]) -> T:
        return self.rng.choices(*choices)[0]

    def _is_odd(self) -> bool:
        return self.rng.random() < self.odd

    def _page(self, window: Window) -> int:
        """Return a page of a window: near its end if that is where mappings go first."""
        pages = min(WINDOW_PAGES[window], self.pages)
        page = self.rng.randrange(pages)
        return WINDOW_PAGES[window] - 1 - page if window is Window.TOP else page

    def _place(self) -> tuple[Window, int]:
        """Return a window and a page: any, or one of what has been mapped."""
        if self.mapped and self.rng.random() < self.loyalty:
            window, offset, length = self.rng.choice(self.mapped)
            page = self.rng.randint(offset // PAGE_SIZE, (offset + length - 1) // PAGE_SIZE)
            return window, min(page, WINDOW_PAGES[window] - 1)
        window = self._choose(self.windows)
        return window, self._page(window)

    def _range(self) -> tuple[Window, int, int]:
        """Return a window, an offset in it and a length that fits."""
        window, page = self._place()
        pages = min(self.rng.randint(1, self.longest), WINDOW_PAGES[window] - page)
        length = pages * PAGE_SIZE
        if self._is_odd():
            length -= self.rng.randrange(PAGE_SIZE)
        return window, page * PAGE_SIZE, length

    def _odd_range(self, kind: Kind) -> tuple[Window, int, int]:
        """Return a range that calls refuse, or take for an empty one."""
        window, offset, length = self._range()
        match self.rng.randrange(5):
            case 0:
                return Window.ABSOLUTE, self.rng.choice(_NOWHERE), length
            case 1:
                return window, offset, 0
            case 2 if kind in (Kind.MMAP, Kind.MUNMAP):
                return window, offset, self.rng.choice(_IMPOSSIBLE)
            case 2:
                return window, offset, -1 - self.rng.randrange(PAGE_SIZE)
            case 3 if kind is Kind.MPROTECT:
                # stops at the hole behind the arena
                return Window.ARENA, offset % ARENA_SIZE, self.rng.choice(_BEYOND)
        return window, offset + self.rng.randrange(1, PAGE_SIZE), max(length - PAGE_SIZE, 0)

    def operation(self) -> Operation:
        """Return one operation."""
        kind = self._choose(self.kinds)
        if kind in (Kind.READ, Kind.WRITE):
            return self._touch(kind)
        if kind is Kind.BRK:
            return self._brk()
        if kind in (Kind.FTRUNCATE, Kind.PWRITE):
            return self._file_call(kind)
        if kind in (Kind.FORK, Kind.SWITCH, Kind.EXIT):
            return Operation(kind)
        if kind is Kind.MREMAP:
            return self._mremap()
        window, offset, length = self._odd_range(kind) if self._is_odd() else self._range()
        if kind is Kind.MMAP:
            return self._mmap(window, offset, length)
        if kind is Kind.MPROTECT:
            prot = 0x10 << self.rng.randrange(4) if self._is_odd() else self.rng.choice(self.prots)
            return Operation(kind, window, offset, length, prot=int(prot))
        if kind is Kind.MADVISE:
            advice = self.rng.choice((-1, 5000)) if self._is_odd() else self._choose(self.advices)
            return Operation(kind, window, offset, length, value=int(advice))
        if kind is Kind.MSYNC:
            flags = self.rng.choice(_MSYNCS) if not self._is_odd() else self.rng.choice((5, 8))
            return Operation(kind, window, offset, length, value=int(flags))
        if kind is Kind.MLOCK2:
            flags = self.rng.choice((0, 1, 1)) if not self._is_odd() else 2
            return Operation(kind, window, offset, length, value=flags)
        return Operation(kind, window, offset, length)

    def _mmap(self, window: Window, offset: int, length: int) -> Operation:
        flags = self._choose(self.placements)
        if self.rng.random() < self.extras:
            flags |= self.rng.choice(_EXTRAS)
        prot = int(self.rng.choice(self.prots))
        if self._is_odd():
            # no type, MAP_SHARED_VALIDATE, which is for files, or no file
            flags ^= self.rng.choice((Map.PRIVATE, Map.SHARED, Map.ANONYMOUS))
        if flags & (Map.FIXED | Map.FIXED_NOREPLACE) == 0:
            if self.rng.random() < 0.5:
                window, offset = Window.ABSOLUTE, 0
            elif window is not Window.ABSOLUTE and self._is_odd():
                offset += self.rng.randrange(PAGE_SIZE)
            if flags & MAP_TYPE == Map.PRIVATE and self.rng.random() < 0.1:
                # without rights: nothing is charged for it
                length, prot = self.rng.choice(_LARGE), 0
                flags &= ~(Map.LOCKED | Map.POPULATE | Map.GROWSDOWN)
        if window is not Window.ABSOLUTE and 0 < length <= ARENA_SIZE:
            self.mapped.append((window, offset, length))
        elif offset == 0:
            self.mapped.append((Window.TOP, TOP_SIZE - 2 * PAGE_SIZE, 2 * PAGE_SIZE))
        operation = Operation(Kind.MMAP, window, offset, length, prot=prot, flags=int(flags))
        if length <= ARENA_SIZE and self.rng.random() < self.files:
            return self._of_file(operation)
        return operation

    def _of_file(self, operation: Operation) -> Operation:
        """Turn a private anonymous mapping into a shared one, or one of a file."""
        flags = operation.flags
        if self.rng.random() < self.shared:
            flags ^= Map.PRIVATE | Map.SHARED
        if flags & Map.SHARED and self.rng.random() < 0.4:
            return msgspec.structs.replace(operation, flags=flags)
        offset = self.rng.randrange(6) * PAGE_SIZE
        if self._is_odd():
            offset = self.rng.choice((8, -PAGE_SIZE, 1 << 62, (1 << 63) - PAGE_SIZE))
        if not self._is_odd():
            flags &= ~Map.ANONYMOUS
        file = self.rng.randint(1, len(FILE_SIZES))
        return msgspec.structs.replace(operation, flags=flags, file=file, offset=offset)

    def _file_call(self, kind: Kind) -> Operation:
        file = self.rng.randint(1, len(FILE_SIZES))
        if kind is Kind.PWRITE:
            offset = self.rng.randrange(10) * PAGE_SIZE
            offset += self.rng.randrange(PAGE_SIZE // WORD) * WORD if self.rng.random() < 0.2 else 0
            return Operation(kind, file=file, offset=offset, value=self.rng.getrandbits(62))
        length = self.rng.randrange(12) * PAGE_SIZE
        if self.rng.random() < 0.4:
            length += self.rng.randrange(PAGE_SIZE)
        if self._is_odd():
            length = -1
        return Operation(kind, length=length, file=file)

    def _mremap(self) -> Operation:
        window, offset, length = self._range()
        longest = WINDOW_PAGES[window] * PAGE_SIZE - offset
        new_length = min(self.rng.randint(1, 2 * self.longest) * PAGE_SIZE, longest)
        if self.rng.random() < 0.4:
            new_length = length
        flags = self.rng.choice(_REMAPS)
        target_window = self._choose(self.windows)
        room = WINDOW_PAGES[target_window] - -(-new_length // PAGE_SIZE)
        target = self.rng.randint(0, max(room, 0)) * PAGE_SIZE
        if self._is_odd():
            match self.rng.randrange(6):
                case 0:
                    window, offset = Window.ABSOLUTE, self.rng.choice(_NOWHERE)
                case 1:
                    length = 0
                case 2:
                    new_length = 0
                case 3:
                    offset, new_length = offset + 8, max(new_length - PAGE_SIZE, 0)
                    length = max(length - PAGE_SIZE, 0)
                case 4:
                    flags ^= 1 << self.rng.randrange(5)
                case 5:
                    target_window, target = Window.ABSOLUTE, self.rng.choice(_NOWHERE)
        self.mapped.append((target_window or Window.ARENA, target % TOP_SIZE, max(length, 1)))
        operation = Operation(
            Kind.MREMAP,
            window,
            offset,
            length,
            flags=int(flags),
            new_length=new_length,
            target_window=target_window,
            target=target,
        )
        return Operation(Kind.READ, window, offset) if unsafe(operation) else operation

    def _brk(self) -> Operation:
        if self._is_odd():
            place = self.rng.choice(
                ((Window.ABSOLUTE, 0), (Window.ABSOLUTE, -1), (Window.ABSOLUTE, 1 << 62))
            )
            return Operation(Kind.BRK, *place)
        offset = self.rng.randrange(WINDOW_PAGES[Window.HEAP]) * PAGE_SIZE
        if self.rng.random() < 0.2:
            offset += self.rng.randrange(PAGE_SIZE)
        return Operation(Kind.BRK, Window.HEAP, offset)

    def _touch(self, kind: Kind) -> Operation:
        if self._is_odd():
            return Operation(kind, Window.ABSOLUTE, self.rng.choice(_NOWHERE), value=1)
        window, page = self._place()
        offset = page * PAGE_SIZE
        if self.rng.random() < 0.2:
            offset += self.rng.randrange(PAGE_SIZE // WORD) * WORD
        value = self.rng.getrandbits(62) if kind is Kind.WRITE else 0
        return Operation(kind, window, offset, value=value)
