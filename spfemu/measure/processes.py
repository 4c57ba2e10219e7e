# SPDX-License-Identifier: MIT
"""How every child of a measurement starts, so that none outlives its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import multiprocess

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_EXIT_ORPHANED = 3
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}

context: Any = multiprocess.get_context("fork")
"""Children inherit the compiled program and the mapped segment."""
_libc = ctypes.CDLL(None, use_errno=True)


def start(name: str, target: Callable[..., None], *arguments: object) -> Any:
    """Fork a process that runs `target`; it is killed when this one ends, however it ends.

    `name` is what ps and top show, 15 characters of it.

    Ctrl-C and SIGTERM are for the parent alone: call it inside `uninterrupted`, together with
    noting the process.  The caller must not have started threads.
    """
    process = context.Process(
        target=_enter, args=(os.getpid(), target, arguments), name=name, daemon=True
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads; those that there are belong to NumPy's BLAS,
        # which knows about fork and which no child uses
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")
        process.start()
    return process


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM off.

    From a child until they mean nothing of Python's there; between its start and its note; and
    while children are ended.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _enter(parent: int, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(_EXIT_ORPHANED)
    _libc.prctl(_PR_SET_NAME, multiprocess.current_process().name.encode(), 0, 0, 0)
    target(*arguments)
