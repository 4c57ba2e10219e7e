# SPDX-License-Identifier: MIT
"""A command of spfemu in a session of its own, looked at from outside.

It says how far a command is, by the segment that its workers share, and which processes it has.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn
from unittest import mock

import numpy as np

from spfemu.layout import SYSTEM
from spfemu.measure import run
from spfemu.stress import hunt

STARTING = "starting"
"""There is no segment yet."""
SET_UP = "set-up"
"""Workers are forked and make what they work on; the gate is closed."""
KERNEL = "kernel"
"""All of them do what is measured or judged, so are in the kernel most of the time."""
ENDING = "ending"
"""They were told to stop, or have been: checks at rest, probes, the report."""
GONE = "gone"
"""The command has ended."""

POLL_SECONDS = 0.001
_SEGMENT = "/memfd:spfemu"

Main = Callable[[], None]


class Session:
    """One command: its process leads a session in which all that it starts stays."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, prepare: object | None) -> None:
        """Start it in `folder`, where its output goes.

        With `prepare` in place of the function of that name it is forked from this process, else
        it is a new one.
        """
        self.output, self.errors = folder / "stdout", folder / "stderr"
        self.status: int | None = None
        """What it has ended with; minus the number of the signal that ended it."""
        self._segment: int | None = None
        # a signal means nothing yet: the new process first has to be one of its own
        held = {signal.SIGINT, signal.SIGTERM}
        sys.stdout.flush()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        self.pid = os.fork()
        if self.pid == 0:
            _become(self, folder)
            if prepare is None:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
                os.execv(  # noqa: S606  this Python
                    sys.executable, [sys.executable, "-m", "spfemu", *arguments]
                )
            _main(arguments, prepare, held)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def poll(self) -> bool:
        """Tell whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, seconds: float) -> bool:
        """Wait until it ends, no longer than that; tells whether it has."""
        deadline = time.monotonic() + seconds
        while not self.poll() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self.status is not None

    def phase(self) -> str:
        """Tell how far it is."""
        if self.poll():
            return GONE
        if self._segment is None:
            self._segment = _segment_of(self.pid)
        if self._segment is None:
            return STARTING
        header = np.frombuffer(os.pread(self._segment, SYSTEM.SIZE, 0), np.int64)
        if len(header) < SYSTEM.SIZE // 8:
            return STARTING
        system = header.view(SYSTEM.dtype)[0]
        if not int(system["gate"]):
            return SET_UP
        return ENDING if int(system["stop"]) else KERNEL

    def members(self) -> list[int]:
        """Return its processes; one that has ended and waits for its parent is none."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal():
                    # the name in parentheses may hold anything
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    state, session = fields[0], int(fields[3])
                    if session == self.pid and state not in "ZX":
                        found.append(int(entry.name))
        return found

    def children(self) -> dict[int, str]:
        """Return the processes that it has started, and what they are called."""
        return {pid: name_of(pid) for pid in self.members() if pid != self.pid}

    def where(self) -> list[str]:
        """Say where its processes are; they write where in Python to the errors, and may end."""
        found = []
        for pid in self.members():
            with contextlib.suppress(OSError):
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                waits_in = Path(f"/proc/{pid}/wchan").read_text()
                found.append(f"process {pid} ({name_of(pid)}): state {state}, wchan {waits_in}")
                os.kill(pid, signal.SIGABRT)
                time.sleep(0.2)
        return found

    def close(self) -> None:
        """End all that is left of it."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(60)
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None


def name_of(pid: int) -> str:
    """Return what ps calls a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "?"


def _segment_of(pid: int) -> int | None:
    """Open the segment that a process has made, if any: not one that a fork has given it."""
    inherited = {entry.stat().st_ino for entry in _segments(os.getpid())}
    with contextlib.suppress(OSError):
        for entry in _segments(pid):
            if entry.stat().st_ino not in inherited:
                return os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    return None


def _segments(pid: int) -> Iterator[Path]:
    """Yield the descriptors of segments that a process has open."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if str(entry.readlink()).startswith(_SEGMENT):
                yield entry


def _become(session: Session, folder: Path) -> None:
    """Leave what belongs to the parent (in the child)."""
    os.setsid()
    os.chdir(folder)
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, session.output, os.O_WRONLY | os.O_CREAT),
        (2, session.errors, os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ["TMPDIR"] = str(folder)
    os.environ["PYTHONFAULTHANDLER"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _main(arguments: tuple[str, ...], prepare: object, held: set[signal.Signals]) -> NoReturn:
    """Run the command line (in the child)."""
    status = 1
    try:
        tempfile.tempdir = None
        sys.argv = ["spfemu", *arguments]
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        faulthandler.enable(sys.stderr)
        from spfemu.cli import main

        with (
            mock.patch.object(run, "prepare", prepare),
            mock.patch.object(hunt, "prepare", prepare),
        ):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        # as Python does before there is a command
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
