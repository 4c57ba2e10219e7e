# SPDX-License-Identifier: MIT
"""Runs a program under strace and writes down its calls and its maps.

A recording is what ``strace -f -y -ttt`` prints, with sections of maps between::

    # maps PID initial
    (lines of /proc/PID/maps)
    # end

`initial` follows a successful execve, `final` precedes the end of a process.  strace holds the
process at these two places for DELAY_SECONDS, in which its map is read; it prints their lines
before, through a pipe.  A map that cannot be read in time is left out.

strace does not hold a process in the execve that itself has made, so the program is started by a
shell's exec, and what is printed before that is dropped.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from spfemu.errors import ResourceError, UsageError
from spfemu.trace.calls import CALLS, UNSUPPORTED
from spfemu.trace.strace import SECTION_END

HEADER = "# spfemu recording 1, Linux {version}\n"
DELAY_SECONDS = 0.1
_STARTER = ("/bin/sh", "-c", 'exec "$@"', "sh")
_TRACED = (*CALLS, *UNSUPPORTED, "clone", "clone3", "fork", "vfork", "execve", "execveat")
_ENDS = ("exit", "exit_group")
_CHUNK_BYTES = 1 << 16
_HEAD = re.compile(rb"(\d+) +(\d+\.\d+) ")
_EXECUTED = re.compile(rb"(?:execve(?:at)?\(.*|<\.\.\. execve(?:at)? resumed>.*)\) += 0\b")
_ENDS_PROCESS = b"exit_group("


@dataclass
class Recorded:
    """What a recording came to; `missed` maps could not be read in time."""

    lines: int = 0
    maps: int = 0
    missed: int = 0
    status: int = 0
    """What the program ended with; negative: the signal that killed it."""
    interrupted: bool = False


def find_strace() -> str:
    """Return the path of strace; raises ResourceError if there is none."""
    path = shutil.which("strace")
    if path is None:
        raise ResourceError(
            "record needs strace and finds none in PATH: install it, for example by "
            "'apt-get install strace'"
        )
    return path


def find_command(name: str) -> str:
    """Return the program that a name means; raises UsageError if there is none."""
    path = shutil.which(name)
    if path is None:
        raise UsageError(f"there is no program '{name}' to record")
    return path


def record(command: Sequence[str], out: BinaryIO) -> Recorded:
    """Run `command`, writing to `out` while it runs.

    Ctrl-C ends the program as it would without strace; what was recorded is kept.  Raises
    UsageError, ResourceError, OSError.
    """
    strace = find_strace()
    find_command(command[0])
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(_arguments(strace, writing, command), pass_fds=[writing])
    finally:
        os.close(writing)
    recorder = _Recorder(out, reading)
    out.write(header().encode())
    try:
        with _patient(recorder.result, process):
            recorder.run()
            recorder.result.status = process.wait()
    finally:
        os.close(reading)
    return recorder.result


def header() -> str:
    """Return the first line: which kernel's address spaces follow."""
    return HEADER.format(version=".".join(platform.release().split(".")[:2]))


def _arguments(strace: str, writing: int, command: Sequence[str]) -> list[str]:
    delay = round(DELAY_SECONDS * 1e6)
    # what this strace does not know (a leading ?) is not traced
    traced = ",".join("?" + name for name in (*_TRACED, *_ENDS))
    return [
        strace,
        *("-f", "-y", "-ttt", "-s", "64", "-q"),
        *("-e", f"trace={traced}", "-e", "signal=none"),
        *("-e", f"inject=execve,?execveat:delay_exit={delay}"),
        *("-e", f"inject=exit_group:delay_enter={delay}"),
        *("-o", f"/dev/fd/{writing}", "--", *_STARTER, *command),
    ]


@contextlib.contextmanager
def _patient(result: Recorded, strace: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the program decide what Ctrl-C and SIGTERM mean; note that there was one.

    It gets Ctrl-C from the terminal; strace passes SIGTERM on to it.
    """

    def note(number: int, _frame: object) -> None:
        result.interrupted = True
        if number == signal.SIGTERM:
            strace.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Recorder:
    """Copies strace's lines, maps added where processes are held."""

    out: BinaryIO
    log: int
    result: Recorded = field(default_factory=Recorded)
    execs: int = 0
    ending: bytes = b""
    """The part of a line for which the map has been read: an exit_group that is held."""

    def run(self) -> None:
        """Copy until strace closes the pipe."""
        rest = b""
        while True:
            data = os.read(self.log, _CHUNK_BYTES)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.line(line)
            self.part(rest)
        if rest:
            self.line(rest)
        self.out.flush()

    def line(self, line: bytes) -> None:
        """Copy a whole line; one of an execve is followed by the map."""
        head = _HEAD.match(line)
        executed = head is not None and _EXECUTED.match(line, head.end())
        if self.execs < 2:
            # the shell's own calls
            self.execs += bool(executed)
            if self.execs < 2:
                return
        self.part(line)
        self.ending = b""
        self.out.write(line + b"\n")
        self.result.lines += 1
        if head is not None and executed:
            self.section(head, "initial")

    def part(self, part: bytes) -> None:
        """Look at a line that has begun: at the end of a process write the map first."""
        if self.ending and part.startswith(self.ending):
            return
        head = _HEAD.match(part)
        if self.execs < 2 or head is None or not part.startswith(_ENDS_PROCESS, head.end()):
            return
        self.ending = part
        self.section(head, "final")

    def section(self, head: re.Match[bytes], kind: str) -> None:
        """Write the map of the process that the line is about, if it is held still."""
        pid = head[1].decode()
        try:
            text = Path(f"/proc/{pid}/maps").read_bytes()
        except OSError:
            text = b""
        if not text or time.time() - float(head[2]) > 0.9 * DELAY_SECONDS:
            self.result.missed += 1
            return
        self.out.write(f"# maps {pid} {kind}\n".encode() + text + f"{SECTION_END}\n".encode())
        self.result.maps += 1
