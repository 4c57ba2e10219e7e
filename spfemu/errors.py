# SPDX-License-Identifier: MIT
"""Errors that end a command, each with its documented exit code and a one-line message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What the command line returns; see docs/cli.md."""

    OK = 0
    VIOLATION = 1
    USAGE = 2
    ENVIRONMENT = 3
    INCONCLUSIVE = 4
    WORKER_DIED = 5
    INTERNAL = 70
    """A mistake in spfemu itself (EX_SOFTWARE of sysexits.h)."""
    INTERRUPTED = 130


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that names the most similar of `names`, or nothing, for messages."""
    folded = {known.casefold(): known for known in names if known != name}
    close = difflib.get_close_matches(name.casefold(), folded, 1)
    return f"; did you mean '{folded[close[0]]}'?" if close else ""


class SpfemuError(Exception):
    """Base of errors that a user may see; `str()` is one line that says what to do."""

    exit_code = ExitCode.INTERNAL


class ViolationError(SpfemuError):
    """An invariant of the emulated machine does not hold."""

    exit_code = ExitCode.VIOLATION


class UsageError(SpfemuError):
    """The command cannot mean anything as it was given."""

    exit_code = ExitCode.USAGE


class ResourceError(SpfemuError):
    """The machine lacks something: memory, permission, a compiler."""

    exit_code = ExitCode.ENVIRONMENT


class InconclusiveError(SpfemuError):
    """The run finished but does not show what it was meant to show."""

    exit_code = ExitCode.INCONCLUSIVE


class WorkerDiedError(SpfemuError):
    """A worker process died or did not answer."""

    exit_code = ExitCode.WORKER_DIED

    def __init__(self, message: str, bug: int | None = None) -> None:
        super().__init__(message)
        self.bug = bug
        """Exit status of a worker whose kernel assertion failed."""


class WorkerKilledError(WorkerDiedError):
    """A signal from elsewhere ended a worker process, or stopped it for good."""


class WorkerHangsError(WorkerDiedError):
    """A worker process makes no progress."""
