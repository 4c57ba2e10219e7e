# SPDX-License-Identifier: MIT
"""The calls of one recorded program, thread by thread, as the workload `trace` makes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spfemu.errors import UsageError
from spfemu.layout import NR_CPUS_MAX, PAGE_SHIFT, PAGE_SIZE, WORD
from spfemu.measure.plan import Progress, quiet
from spfemu.mm.flags import DEFAULT_MAP_COUNT, Map, Mremap
from spfemu.replay.encoding import ENTRY_WORDS, Step
from spfemu.replay.extent import frames_of
from spfemu.replay.machine import STACK, initial_flags, is_special
from spfemu.replay.player import NOT_EMULATED
from spfemu.replay.run import reading
from spfemu.replay.size import SPLITS
from spfemu.segment import Segment
from spfemu.trace.calls import Call, MemoryCall
from spfemu.trace.order import in_order
from spfemu.trace.strace import Clone, Event, Exec, Exit, Maps, Reader
from spfemu.workloads.parameters import Needs, Param

ENTRIES_MAX = 1 << 20
"""Most entries of a table: 64 MiB."""
Entry = list[int]


@dataclass
class _Image:
    """An address space while the trace is read."""

    pid: int
    threads: dict[int, list[Entry]] = field(default_factory=dict)
    """Entries of each thread, in the order in which they were made."""
    started: set[int] = field(default_factory=set)
    calls: int = 0
    forks: int = 0
    shared: int = 0
    first_seconds: float | None = None
    last_seconds: float | None = None
    brk: int = 0

    def entries(self, pid: int) -> list[Entry]:
        return self.threads.setdefault(pid, [])


@dataclass(frozen=True)
class Table:
    """The calls of the process with the most threads, or else the most calls."""

    pid: int
    threads: tuple[tuple[Entry, ...], ...]
    paths: int
    shared: int
    """Calls that map shared anonymous memory, each of which takes a file."""
    calls: int
    forks: int
    recorded_seconds: float | None
    problems: tuple[str, ...]

    @property
    def words(self) -> int:
        """Words that it takes in the segment."""
        return ENTRY_WORDS * sum(map(len, self.threads)) + self.paths

    def needs(self, pages: int) -> Needs:
        """Return what one pass holds at most, touching `pages` pages of each mapping."""
        entries = [entry for thread in self.threads for entry in thread]
        frames = frames_of(entries, pages)
        vmas = min(SPLITS * len(entries), DEFAULT_MAP_COUNT)
        files = self.paths + self.shared + 1
        if self.forks == 0:
            return Needs(frames, vmas, files=files)
        # each thread may be about to end a child
        copies = 1 + len(self.threads)
        return Needs(
            frames=2 * frames,
            vmas=vmas * copies,
            mms=len(self.threads),
            chains=2 * vmas * copies,
            files=files,
        )

    def write(self, segment: Segment) -> None:
        """Put it into the segment, and tell each worker where its part is."""
        at = segment.address["trace"]
        files = at + WORD * ENTRY_WORDS * sum(map(len, self.threads))
        workload = segment.cpus["workload"]
        for index, thread in enumerate(self.threads):
            entries = self._encode(thread, segment, files)
            first = (at - segment.base) // WORD
            segment.words[first : first + entries.size] = entries.ravel()
            for param, value in (
                (Param.TRACE_FIRST, at),
                (Param.TRACE_END, at + entries.nbytes),
                (Param.TRACE_FILES, files),
                (Param.TRACE_NR_FILES, self.paths),
            ):
                workload[index, param_word(param)] = value
            at += entries.nbytes

    def _encode(self, thread: tuple[Entry, ...], segment: Segment, files: int) -> NDArray[np.int64]:
        """Return a thread's entries with numbers of CPUs and files made addresses."""
        entries = np.array(thread, dtype=np.int64).reshape(-1, ENTRY_WORDS)
        starts = entries[:, 0] == Step.START
        entries[starts, 1] = [segment.cpu(int(i)) for i in entries[starts, 1]]
        mapped = entries[:, 6] > 0
        entries[mapped, 6] = files + (entries[mapped, 6] - 1) * WORD
        return entries


def param_word(param: Param) -> int:
    """Return the index of a parameter's word in CPU.workload."""
    return (param - Param.SIZE) // WORD


def read_table(path: str, progress: Progress = quiet) -> Table:
    """Read a trace; raises UsageError if it has no calls, or too many."""
    with reading(path, f"reading {path}", progress) as reader:
        builder = _Builder(reader)
        for event in in_order(reader):
            builder.event(event)
    return builder.table(path)


class _Builder:
    """Sorts events by address space and thread."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.images: dict[int, _Image] = {}
        self.all: list[_Image] = []
        self.paths: dict[str, int] = {}
        self.entries = 0

    def event(self, event: Event) -> None:
        image = self._image(event.pid)
        if not isinstance(event, Maps):
            self._time(image, event)
        if isinstance(event, MemoryCall):
            self._call(image, event)
        elif isinstance(event, Clone):
            self._clone(image, event)
        elif isinstance(event, Exec):
            del self.images[event.pid]
            self._time(self._image(event.pid), event)
        elif isinstance(event, Exit):
            del self.images[event.pid]
        elif event.initial:
            self._initial(image, event)

    def _image(self, pid: int) -> _Image:
        image = self.images.get(pid)
        if image is None:
            # a thread may show up before the call that makes it returns
            parents = [p for p, shares in self.reader.cloning() if shares and p != pid]
            if len(parents) == 1:
                image = self._image(parents[0])
                self._start(image, parents[0], pid)
            else:
                image = _Image(pid)
                image.entries(pid)
                self.all.append(image)
            self.images[pid] = image
        return image

    def _time(self, image: _Image, event: MemoryCall | Clone | Exec | Exit) -> None:
        if event.seconds is not None:
            if image.first_seconds is None:
                image.first_seconds = event.seconds
            image.last_seconds = event.seconds

    def _add(self, image: _Image, pid: int, entry: Entry) -> None:
        image.entries(pid).append(entry)
        self.entries += 1
        if self.entries > ENTRIES_MAX:
            raise UsageError(
                f"the trace has more than {ENTRIES_MAX:,} calls: measure a shorter run of the "
                "program ('spfemu replay' has no such limit)"
            )

    def _clone(self, image: _Image, event: Clone) -> None:
        if not event.shares_mm:
            image.forks += 1
            self._add(image, event.pid, _entry(Step.FORK))
        elif event.child not in self.images:
            self.images[event.child] = image
            self._start(image, event.pid, event.child)

    def _start(self, image: _Image, parent: int, child: int) -> None:
        image.entries(child)
        if child not in image.started:
            image.started.add(child)
            self._add(image, parent, _entry(Step.START, child))

    def _path(self, path: str) -> int:
        return self.paths.setdefault(path, len(self.paths) + 1)

    def _initial(self, image: _Image, maps: Maps) -> None:
        for m in maps.mappings:
            file = self._path(m.name) if m.is_file or is_special(m) else 0
            offset = (m.offset if file else m.start) >> PAGE_SHIFT
            touch = 0 if is_special(m) or m.name == STACK else m.prot
            place = _entry(Step.PLACE, m.start, m.end, initial_flags(m), touch)
            place[6:] = [file, offset]
            self._add(image, maps.pid, place)

    def _call(self, image: _Image, call: MemoryCall) -> None:
        """Add one call, unless it failed or is no call that workers make."""
        if call.result is not None and call.result < 0:
            return
        image.calls += 1
        arguments = list(call.arguments)
        file = 0
        if call.call is Call.MMAP:
            arguments[0] = call.result or arguments[0]
            arguments[3] = (arguments[3] & ~NOT_EMULATED & ~Map.FIXED_NOREPLACE) | Map.FIXED
            file = 0 if call.path is None else self._path(call.path)
            image.shared += bool(file == 0 and arguments[3] & Map.SHARED)
        elif call.call is Call.MREMAP and not arguments[3] & Mremap.FIXED:
            if call.result == arguments[0]:
                arguments[3] &= ~Mremap.MAYMOVE
            else:
                arguments[3:] = [arguments[3] | Mremap.FIXED, call.result or 0]
        elif call.call is Call.BRK:
            arguments = self._brk(image, call)
        entry = _entry(call.call, *arguments)
        entry[6:] = [file, call.offset]
        self._add(image, call.pid, entry)

    def _brk(self, image: _Image, call: MemoryCall) -> list[int]:
        """Return where the heap ends after a call, and the range that it has added."""
        end = call.result or 0
        if image.brk == 0:
            self._add(image, call.pid, _entry(Step.SET_BRK, end))
            image.brk = end
        start = -(-image.brk // PAGE_SIZE) * PAGE_SIZE
        image.brk = end
        return [end, start, max(end - start, 0)]

    def table(self, path: str) -> Table:
        """Choose the process and number its threads."""
        found = [i for i in self.all if i.calls]
        if not found:
            why = [*self.reader.problems.texts(), f"{path}: there is no call on memory in it"]
            raise UsageError(f"nothing to measure: {why[0]}")
        image = max(found, key=lambda i: (_busy(i), i.calls))
        numbers: dict[int, int] = {}
        for pid, entries in image.threads.items():
            if pid == next(iter(image.threads)) or entries:
                numbers[pid] = len(numbers)
        if len(numbers) > NR_CPUS_MAX:
            raise UsageError(
                f"process {image.pid} has {len(numbers)} threads, more than {NR_CPUS_MAX}"
            )
        seconds = None
        if image.first_seconds is not None and image.last_seconds is not None:
            seconds = image.last_seconds - image.first_seconds
        return Table(
            pid=image.pid,
            threads=tuple(tuple(_numbered(image.threads[pid], numbers)) for pid in numbers),
            paths=len(self.paths),
            shared=image.shared,
            calls=image.calls,
            forks=image.forks,
            recorded_seconds=seconds,
            problems=tuple(self.reader.problems.texts()),
        )


def _busy(image: _Image) -> int:
    """Return how many threads make calls."""
    return sum(bool(entries) for entries in image.threads.values())


def _numbered(entries: list[Entry], numbers: dict[int, int]) -> list[Entry]:
    """Replace pids of threads by their numbers; threads that do nothing are not started."""
    kept = []
    for entry in entries:
        if entry[0] == Step.START:
            if entry[1] not in numbers:
                continue
            entry[1] = numbers[entry[1]]
        kept.append(entry)
    return kept


def _entry(kind: int, *arguments: int) -> Entry:
    return [int(kind), *map(int, arguments), *([0] * (ENTRY_WORDS - 1 - len(arguments)))]
