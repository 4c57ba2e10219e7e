# SPDX-License-Identifier: MIT
"""Reads what ``strace -f`` prints, line by line, and `record`'s sections of maps between.

Nothing is kept but the calls that have begun and not returned, so a trace may be larger than
memory.  A line that cannot be used is noted with its number and left out.

Two threads' calls may overlap; strace then prints a call in two parts.  Calls take effect in the
order in which they return, except munmap, which does when it begins: what it has unmapped may be
mapped again by another thread before it returns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from spfemu.trace import maps
from spfemu.trace.calls import CALLS, FOREIGN, UNSUPPORTED, MemoryCall, decode
from spfemu.trace.lexer import Text, parse_call
from spfemu.trace.maps import Mapping
from spfemu.trace.problems import Problems, TraceError, quote

LINE_BYTES = 1 << 15
"""Longer lines are not read: strace cuts strings, so that its own are shorter."""
REPORT_LINES = 4096
PID_MAX = 1 << 22
"""PID_MAX_LIMIT of 64-bit kernels."""
UNNAMED = 0
"""Stands for the first process as long as strace leaves out its pid."""
SECTION = re.compile(r"# maps (\d{1,7}) (initial|final)")
SECTION_END = "# end"

_PID = re.compile(r"(?:\[pid +(\d{1,7})\]|(\d{1,7})) +")
_TIME = re.compile(r" *(?:(\d\d):(\d\d):(\d\d)(\.\d{1,9})?|\+?(\d{1,12}\.\d{1,9})) +")
_RELATIVE = re.compile(r"\( *\+? *\d+\.\d+\) +")
_NUMBERS = re.compile(r"\[ *(?:\d+|[0-9a-f?]{8,16})\] +")
_CALL = re.compile(r"([a-z_][a-z0-9_]*)\(")
_UNFINISHED = re.compile(r"\s*<unfinished \.\.\.>\s*$")
_RESUMED = re.compile(r"<\.\.\. ([a-z_][a-z0-9_]*) resumed>")
_ENDED = re.compile(r"\+\+\+ (exited with \d+|killed by \w+(?: \(core dumped\))?) \+\+\+")
_SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d{1,7}) \+\+\+")
_SIGNAL = re.compile(r"--- (?:(SIG\w+) \{.*\}|stopped by SIG\w+) ---")
_NOISE = re.compile(r"(?:strace: )?Process (\d{1,7}) (?:attached|detached)\b.*|strace: .*|\?+\(.*")
_INTERRUPTED = re.compile(r"(.+)strace: Process (\d{1,7}) attached")
_OTHER_WIDTH = re.compile(r"(?:strace: )?\[ Process PID=\d+ runs in ([\w ]+) mode\. \]")
_WORDS = re.compile(r"\w+")
_VERSION = re.compile(r"# spfemu recording \d+, Linux (\d{1,3})\.(\d{1,3})")
_CLONES = ("clone", "clone3", "fork", "vfork")
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Clone:
    """A thread or process was made: `pid` made `child`."""

    line: int
    pid: int
    seconds: float | None
    child: int
    shares_mm: bool


@dataclass(frozen=True, slots=True)
class Exec:
    """A process goes on with a fresh address space."""

    line: int
    pid: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Exit:
    """A thread is gone, or about to go."""

    line: int
    pid: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Maps:
    """What /proc/PID/maps held: right after an exec (`initial`), or right before the exit."""

    line: int
    pid: int
    initial: bool
    mappings: tuple[Mapping, ...]


Event = MemoryCall | Clone | Exec | Exit | Maps


Id = tuple[int, int]
"""What a call is known by: its process and the line on which it begins."""


@dataclass(frozen=True)
class Vacating:
    """A call that may move or take mappings away from a range."""

    pid: int
    line: int
    start: int
    end: int

    @property
    def id(self) -> Id:
        """What the call is known by."""
        return self.pid, self.line


@dataclass(frozen=True)
class _Begun:
    """The first part of a call that has not returned."""

    line: int
    name: str
    text: str
    emitted: bool
    vacating: Vacating | None


class Reader:
    """Reads one trace; iterating yields its events in the order of the file.

    `problems` fills while it is read, as do the counts.  `report` is called now and then, with the
    number of bytes read so far.
    """

    def __init__(
        self, file: BinaryIO, name: str, report: Callable[[int], None] | None = None
    ) -> None:
        self.problems = Problems(name)
        self.skipped: Counter[str] = Counter()
        """Calls on memory that are not replayed, by name."""
        self.signals: Counter[str] = Counter()
        self.version: int | None = None
        """The kernel on which it was recorded, (major << 8) + minor, if it says so."""
        self.lines = 0
        self.bytes = 0
        self.first_seconds: float | None = None
        self.last_seconds: float | None = None
        self._file = file
        self._report = report
        self._begun: dict[int, _Begun] = {}
        self._live: set[int] = set()
        self._announced: set[int] = set()
        self._unnamed = 0  # pid of the process that had none in its first lines
        self._days = 0

    @property
    def seconds(self) -> float | None:
        """Time from the first line to the last, if the trace has times."""
        if self.first_seconds is None or self.last_seconds is None:
            return None
        return self.last_seconds - self.first_seconds

    def cloning(self) -> list[tuple[int, bool]]:
        """Return the pids that are about to make a child, and whether it will share memory."""
        return [
            (pid, begun.name == "vfork" or "CLONE_VM" in _WORDS.findall(begun.text))
            for pid, begun in self._begun.items()
            if begun.name in _CLONES
        ]

    def vacating(self) -> list[Vacating]:
        """Return the calls that have not returned and may move mappings away."""
        return [b.vacating for b in self._begun.values() if b.vacating is not None]

    def __iter__(self) -> Iterator[Event]:
        """Read to the end."""
        for text in self._whole_lines():
            section = SECTION.fullmatch(text)
            if section is not None:
                yield self._section(int(section[1]), initial=section[2] == "initial")
            elif text.startswith("#"):
                self._comment(text)
            elif text:
                yield from self._line(text)
        for begun in self._begun.values():
            if begun.name in CALLS and not begun.emitted:
                self.problems.add(begun.line, f"{begun.name} never returned")

    def _whole_lines(self) -> Iterator[str]:
        """Yield the lines as strace meant them: without -o it interrupts some for a message."""
        begun = ""
        for part in self._lines():
            text = begun + part
            match = _INTERRUPTED.fullmatch(text)
            begun = match[1] if match else ""
            if match is None:
                yield text
            else:
                self._announced.add(int(match[2]))

    def _lines(self) -> Iterator[str]:
        """Yield the lines that are text, without their ends."""
        while data := self._file.readline(LINE_BYTES):
            self.lines += 1
            self.bytes += len(data)
            if self._report is not None and self.lines % REPORT_LINES == 0:
                self._report(self.bytes)
            if not data.endswith(b"\n"):
                self._cut(data)
                continue
            try:
                text = data.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                self.problems.add(self.lines, "this is binary, no output of strace")
                continue
            yield text

    def _comment(self, text: str) -> None:
        match = _VERSION.fullmatch(text)
        if match is not None:
            self.version = (int(match[1]) << 8) + int(match[2])

    def _cut(self, data: bytes) -> None:
        """Leave out a line that is too long, or the last one if it has no end.

        What looks like a number there may be the beginning of one.
        """
        cut = len(data) < LINE_BYTES
        while data and not data.endswith(b"\n"):
            data = self._file.readline(LINE_BYTES)
            self.bytes += len(data)
        what = "the line is cut" if cut else f"the line is longer than {LINE_BYTES} bytes"
        self.problems.add(self.lines, what)

    def _section(self, pid: int, *, initial: bool) -> Maps:
        """Read the map that follows."""
        first = self.lines + 1
        found = []
        for text in self._lines():
            if text == SECTION_END:
                break
            found.append(text)
        else:
            self.problems.add(self.lines, "the map is cut")
        return Maps(first, pid, initial, maps.parse(found, self.problems, first))

    def _line(self, text: str) -> Iterator[Event]:
        try:
            yield from self._parse(text)
        except TraceError as error:
            self.problems.add(self.lines, str(error))

    def _parse(self, text: str) -> Iterator[Event]:
        """Take one line apart; raises TraceError if it is none of strace's."""
        pid, seconds, rest = self._prefix(text)
        match = _CALL.match(rest)
        if match is not None:
            self._live.add(pid)
            unfinished = _UNFINISHED.search(rest)
            if unfinished is None:
                yield from self._call(pid, seconds, self.lines, match[1], rest[match.end() :])
            else:
                yield from self._begin(
                    pid, seconds, match[1], rest[match.end() : unfinished.start()]
                )
            return
        match = _RESUMED.match(rest)
        if match is not None:
            self._live.add(pid)
            yield from self._resume(pid, seconds, match[1], rest[match.end() :])
            return
        yield from self._other(pid, seconds, rest)

    def _prefix(self, text: str) -> tuple[int, float | None, str]:
        """Return the pid and the time that a line begins with, and what follows."""
        match = _PID.match(text)
        pid = None
        at = 0
        if match is not None:
            pid = int(match[1] or match[2])
            at = match.end()
            if not 0 < pid <= PID_MAX:
                raise TraceError(f"there is no process {pid}")
        seconds = None
        time = _TIME.match(text, at)
        if time is not None:
            seconds = self._seconds(time)
            at = time.end()
            relative = _RELATIVE.match(text, at)
            at = relative.end() if relative else at
        for _ in range(2):  # -n, -i
            numbers = _NUMBERS.match(text, at)
            at = numbers.end() if numbers else at
        return self._process(pid), seconds, text[at:]

    def _seconds(self, time: re.Match[str]) -> float:
        """Return the time of a line; that of -r, which is relative, adds up."""
        if time[5] is None:
            of_day = int(time[1]) * 3600 + int(time[2]) * 60 + int(time[3]) + float(time[4] or 0)
            seconds = of_day + self._days * _DAY
            if self.last_seconds is not None and seconds < self.last_seconds - _DAY / 2:
                self._days += 1
                seconds += _DAY
        elif float(time[5]) < 1e8:
            seconds = (self.last_seconds or 0.0) + float(time[5])
        else:
            seconds = float(time[5])
        if self.first_seconds is None:
            self.first_seconds = seconds
        self.last_seconds = seconds
        return seconds

    def _process(self, pid: int | None) -> int:
        """Return the process of a line.

        Without -o strace leaves out the pid while there is one process; that one gets its number
        with the first line that has one and is not of a process that was announced.
        """
        if pid is None:
            return next(iter(self._live)) if len(self._live) == 1 else UNNAMED
        if UNNAMED in self._live and pid not in self._live and pid not in self._announced:
            self._unnamed = self._unnamed or pid
        return UNNAMED if pid == self._unnamed else pid

    def _begin(self, pid: int, seconds: float | None, name: str, text: str) -> Iterator[MemoryCall]:
        """Keep the first part of a call; a munmap is done here."""
        emitted = name == "munmap"
        vacating = None
        if emitted or name == "mremap":
            call = decode(self.lines, pid, seconds, parse_call(name, text + ") = ?"))
            if emitted:
                yield call
            else:
                start, length = call.arguments[:2]
                vacating = Vacating(pid, self.lines, start, start + length)
        self._begun[pid] = _Begun(self.lines, name, text, emitted, vacating)

    def _resume(self, pid: int, seconds: float | None, name: str, rest: str) -> Iterator[Event]:
        """Put both parts of a call together."""
        begun = self._begun.pop(pid, None)
        if begun is None or begun.name != name:
            if name in CALLS or name in _CLONES:
                raise TraceError(f"{name} resumes that never began")
            return
        if not begun.emitted:
            yield from self._call(pid, seconds, begun.line, name, begun.text + rest)

    def _call(
        self, pid: int, seconds: float | None, line: int, name: str, rest: str
    ) -> Iterator[Event]:
        """Yield what a whole call means for address spaces."""
        if name in CALLS:
            call = decode(line, pid, seconds, parse_call(name, rest))
            if call.result is None:
                raise TraceError(f"{name} never returned")
            yield call
        elif name in _CLONES:
            yield from self._clone(pid, seconds, parse_call(name, rest))
        elif name in ("execve", "execveat"):
            if parse_call(name, rest).result == 0:
                yield Exec(line, pid, seconds)
        elif name in ("exit", "exit_group"):
            yield Exit(line, pid, seconds)
        elif name in UNSUPPORTED:
            self.skipped[name] += 1
        elif name in FOREIGN:
            raise TraceError(f"{name} is a call of another architecture")

    def _clone(self, pid: int, seconds: float | None, text: Text) -> Iterator[Clone]:
        if text.result is None or text.result <= 0:
            return
        if text.result > PID_MAX:
            raise TraceError(f"there is no process {text.result}")
        shares = text.name == "vfork"
        for argument in text.arguments:
            shares = shares or "CLONE_VM" in _WORDS.findall(argument)
        self._live.add(text.result)
        yield Clone(self.lines, pid, seconds, text.result, shares)

    def _other(self, pid: int, seconds: float | None, rest: str) -> Iterator[Event]:
        """Read a line that is no call."""
        if _ENDED.fullmatch(rest):
            self._live.discard(pid)
            self._begun.pop(pid, None)
            yield Exit(self.lines, pid, seconds)
            return
        superseded = _SUPERSEDED.fullmatch(rest)
        if superseded is not None:
            # from here on the thread that calls execve has the pid of its leader
            begun = self._begun.pop(int(superseded[1]), None)
            if begun is not None:
                self._begun[pid] = begun
            return
        signal = _SIGNAL.fullmatch(rest)
        if signal is not None:
            self.signals[signal[1] or "stop"] += 1
            return
        if match := _OTHER_WIDTH.fullmatch(rest):
            raise TraceError(f"a process runs in {match[1]} mode: its calls are not x86-64's")
        noise = _NOISE.fullmatch(rest)
        if noise is not None and noise[1]:
            self._announced.add(int(noise[1]))
        elif noise is None:
            raise TraceError(f"this is no output of strace: {quote(rest)}")
