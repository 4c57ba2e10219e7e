# SPDX-License-Identifier: MIT
"""Work that may crash or never end: a broken kernel writes where it likes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import multiprocess

_CONTEXT = multiprocess.get_context("fork")


class DiedError(Exception):
    """The work did not come back: the message says why, as a verb with its object."""


def in_child(work: Callable[[], Any], seconds: float) -> Any:
    """Do `work` in a forked process and return what it returns, or raise what it raises.

    Raises DiedError if a signal ends it, or if it has not ended after so many seconds.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=_send, args=(work, sender))
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise DiedError(f"does not end within {seconds:.0f} s")
        result, error = receiver.recv()
    except EOFError:
        child.join()
        raise DiedError(f"dies by {signal.Signals(-child.exitcode).name}") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if error is not None:
        raise error
    return result


def _send(work: Callable[[], Any], sender: Any) -> None:
    # Ctrl-C is the parent's, who ends this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sender.send((work(), None))
    except Exception as error:  # noqa: BLE001 whatever it is, the parent raises it
        sender.send((None, error))
