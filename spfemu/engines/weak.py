# SPDX-License-Identifier: MIT
"""Memory that is weaker than a step at a time: store buffers, and loads that are done early.

There is one order in which stores become visible, to all CPUs at once, as on arm64 ("other
multi-copy atomic").  What a weaker order adds to the order of the steps is two things:

- A store waits in its CPU's buffer, seen by that CPU alone, while later ones become visible.
- A load has the value that its word had at an earlier time.  Each CPU has a time before which none
  of its loads can have been done (`floor`); barriers and acquires move it.

What keeps stores in order: `smp_wmb` between them, the release of the later one, the same address.
`smp_mb`, a seq_cst or release read-modify-write, a futex call, a panic and the function's end empty
the buffer.  What keeps a load from being done before an earlier one: `smp_rmb` and `smp_mb` between
them, the acquire of the earlier one, an address made of it (see dependencies.py), the same address.
A store is never visible before an earlier load is done: load buffering is not shown.

``Memory.TSO`` is x86: buffers are first in, first out, loads are in order.  docs/weak-memory.md
says what the model leaves out, and why it shows nothing that arm64 forbids.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from spfemu.engines.points import ScriptError
from spfemu.engines.stepped import StepEngine
from spfemu.engines.steps import ORDERS, Step

WORD_BYTES = 8
PAGE_BYTES = 4096
VERSIONS_MAX = 8
"""Values of a word that are remembered."""
ACQUIRES = ("acquire", "seq_cst")
RELEASES = ("release", "seq_cst")
FULL_BARRIERS = (Step.FUTEX_WAIT, Step.FUTEX_WAKE, Step.PANIC)


class Memory(StrEnum):
    """In which order a script's CPUs see each other's accesses."""

    SC = "sc"
    TSO = "tso"
    WEAK = "weak"


def _read(address: int, size: int = WORD_BYTES) -> bytes:
    return ctypes.string_at(address, size)


def _write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


@dataclass
class Pending:
    """A store that is not visible yet: a word, or a page that was cleared or copied to.

    `time` is when it was executed, `group` how many write barriers came before it; `held`: it waits
    although nothing orders it behind another.
    """

    address: int
    data: bytes
    time: int
    group: int
    release: bool
    held: bool

    def overlaps(self, address: int, size: int) -> bool:
        """Tell whether it writes to any byte of a range."""
        return self.address < address + size and address < self.address + len(self.data)

    def word(self, address: int) -> int:
        """Return what it writes to the word at `address`."""
        offset = address - self.address
        return _integer(self.data[offset : offset + WORD_BYTES])


class WeakMemory:
    """What the CPUs of a script share: the time, and the latest values of each word.

    `now` counts changes.  A version is (the time from which on it was visible, the value).
    """

    def __init__(self, engine: StepEngine, memory: Memory) -> None:
        self.tso = memory is Memory.TSO
        self.now = 0
        self.sites = engine.sites
        self.addressing = engine.addressing
        self._versions: dict[int, list[tuple[int, int]]] = {}

    def versions(self, address: int) -> list[tuple[int, int]]:
        """Return what is remembered of a word, oldest first.

        What the script itself or a call outside of it has written everybody sees.
        """
        value = _word(address)
        known = self._versions.setdefault(address, [(0, value)])
        if known[-1][1] != value:
            known[:] = [(self.now, value)]
        return known

    def changed(self, address: int, value: int) -> None:
        """Note that a word has a new value from now on; `versions` was called before."""
        known = self._versions[address]
        if known[-1][1] != value:
            known.append((self.now, value))
            del known[:-VERSIONS_MAX]


class WeakCpu:
    """One CPU's view of a `WeakMemory`.

    `hold` decides whether a store to an address waits in the buffer, `pick` which value a load has:
    how many versions back, at most as many as it is given.  `visible` is told the address, old and
    new value of each delayed store that becomes visible.  `note` says what was special about the
    last step, as a schedule writes it.
    """

    def __init__(self, memory: WeakMemory, visible: Callable[[int, int, int], None]) -> None:
        self.memory = memory
        self.visible = visible
        self.hold: Callable[[int], bool] = lambda _address: False
        self.pick: Callable[[int, int], int] = lambda _address, _back: 0
        self.note = ""
        self.buffer: list[Pending] = []
        self._group = 0
        self._floor = memory.now
        self._seen: dict[int, int] = {}
        self._undo: tuple[int, bytes] | None = None

    # around a step

    def begin(self, kind: int, site: int, arguments: list[int]) -> int:
        """Prepare memory for the step that is about to be executed; returns what it will read."""
        self.note = ""
        address = arguments[0]
        if kind == Step.LOAD:
            return self._begin_load(site, address)
        if kind == Step.STORE:
            self._undo = address, _read(address)
            return _word(address)
        if kind == Step.RMW:
            return self._begin_rmw(site, arguments)
        if kind == Step.PAGE:
            self._begin_page(site, arguments)
        elif kind == Step.FENCE:
            self._fence(ORDERS[self._primitive(site)])
        elif kind in FULL_BARRIERS:
            self._fence("seq_cst")
        return 0

    def end(self, kind: int, site: int, address: int) -> int:
        """Put memory right after the step; returns what it has written, if anything."""
        result = 0
        if kind in (Step.LOAD, Step.STORE, Step.RMW):
            result = _word(address)
        if kind in (Step.STORE, Step.PAGE):
            self._store(site, address)
        elif kind == Step.RMW:
            self.memory.now += 1
            self.memory.changed(address, result)
            self._seen[address] = self.memory.now
        if self._undo is not None:
            _write(*self._undo)
            self._undo = None
        if kind in (Step.STORE, Step.PAGE):
            self._show_what_may()
        return result

    def _primitive(self, site: int) -> str:
        return self.memory.sites[site].primitive

    def resynchronise(self) -> None:
        """Order everything before now before everything after: a full barrier."""
        self._fence("seq_cst")

    def _begin_load(self, site: int, address: int) -> int:
        value, time = self._loaded(address)
        acquires = ORDERS[self._primitive(site)] in ACQUIRES
        if acquires or site in self.memory.addressing:
            self._floor = max(self._floor, time)
        if value != _word(address):
            self._undo = address, _read(address)
            _write(address, value.to_bytes(WORD_BYTES, "little", signed=True))
        return value

    def _loaded(self, address: int) -> tuple[int, int]:
        """Return the value that a load has, and the time at which it was done at the earliest."""
        for entry in reversed(self.buffer):
            if entry.overlaps(address, WORD_BYTES):
                return entry.word(address), entry.time
        versions = self.memory.versions(address)
        seen = self._seen.get(address, 0)
        back = 0 if self.memory.tso else self._versions_back(versions, seen)
        if back:
            back = self.pick(address, back)
            self.note = f"?{back}" if back else ""
        since, value = versions[-1 - back]
        self._seen[address] = max(since, seen)
        return value, max(self._floor, since, seen)

    def _versions_back(self, versions: list[tuple[int, int]], seen: int) -> int:
        """Count the versions before the last that it may still read.

        One that was gone before the time of its earliest possible load it may not, nor one older
        than what it has read or written there.
        """
        oldest = max(self._floor, seen)
        back = 0
        while back + 1 < len(versions) and versions[-1 - back][0] > oldest:
            back += 1
        return back

    def _begin_rmw(self, site: int, arguments: list[int]) -> int:
        """It reads the latest value and is visible at once, behind what it must not pass."""
        address = arguments[0]
        order = ORDERS[self._primitive(site)]
        self._show_through(lambda e: e.group < self._group or e.overlaps(address, WORD_BYTES))
        value = self.memory.versions(address)[-1][1]
        fails = self._primitive(site).startswith("cmpxchg") and value != arguments[1]
        if (order in RELEASES and not fails) or self.memory.tso:
            self._show_through(lambda _entry: True)
        if site in self.memory.addressing or order in ACQUIRES:
            self._floor = self.memory.now
        return value

    def _begin_page(self, site: int, arguments: list[int]) -> None:
        address = arguments[0]
        if self._primitive(site) == "copy_page":
            source = arguments[1]
            self._show_through(lambda e: e.overlaps(source, PAGE_BYTES))
        self._undo = address, _read(address, PAGE_BYTES)

    def _fence(self, order: str) -> None:
        if order == "seq_cst":
            self._show_through(lambda _entry: True)
        if order == "release" and self.buffer:
            self._group += 1
        if order in ACQUIRES:
            self._floor = self.memory.now

    def _store(self, site: int, address: int) -> None:
        size = PAGE_BYTES if self._undo and len(self._undo[1]) == PAGE_BYTES else WORD_BYTES
        release = ORDERS.get(self._primitive(site)) in RELEASES
        held = self.hold(address)
        data = _read(address, size)
        self.buffer.append(Pending(address, data, self.memory.now, self._group, release, held))
        self.note = "+" if held else ""

    # the buffer

    def may_show(self, index: int) -> bool:
        """Tell whether a store of the buffer may become visible before those ahead of it."""
        entry = self.buffer[index]
        if self.memory.tso or entry.release:
            return index == 0
        return not any(
            ahead.group < entry.group or ahead.overlaps(entry.address, len(entry.data))
            for ahead in self.buffer[:index]
        )

    def show(self, index: int) -> None:
        """Let a store of the buffer become visible, and what waits for nothing but it."""
        self._show(index)
        self._show_what_may()

    def show_address(self, address: int) -> None:
        """Let its oldest store to `address` become visible; raises ScriptError if it may not."""
        indices = [i for i, e in enumerate(self.buffer) if e.overlaps(address, WORD_BYTES)]
        if not indices:
            raise ScriptError(f"no store to {address:#x} is held back")
        if not self.may_show(indices[0]):
            raise ScriptError(f"the store to {address:#x} is ordered behind one that is held back")
        self.show(indices[0])

    def _show_through(self, wanted: Callable[[Pending], bool]) -> None:
        """Let the stores that are wanted, and all before them, become visible in order."""
        count = max((i + 1 for i, e in enumerate(self.buffer) if wanted(e)), default=0)
        for _ in range(count):
            self._show(0)
        self._show_what_may()

    def _show_what_may(self) -> None:
        index = 0
        while index < len(self.buffer):
            if not self.buffer[index].held and self.may_show(index):
                self._show(index)
                index = 0
            else:
                index += 1

    def _show(self, index: int) -> None:
        entry = self.buffer.pop(index)
        memory = self.memory
        if entry.time < memory.now or entry.held:
            self.visible(entry.address, _word(entry.address), entry.word(entry.address))
        before = {a: memory.versions(a) for a in self._words(entry)}
        memory.now += 1
        _write(entry.address, entry.data)
        for address in before:
            memory.changed(address, entry.word(address))
            self._seen[address] = memory.now

    @staticmethod
    def _words(entry: Pending) -> range:
        return range(entry.address, entry.address + len(entry.data), WORD_BYTES)
