# SPDX-License-Identifier: MIT
"""Progress on stderr, for somebody who waits at a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done (None: unknown)."""


def _ignore(_message: str, _fraction: float | None) -> None:
    return


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Report]:
    """Show a bar while the block runs; nothing if `quiet` or stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield _ignore
        return
    bar = _bar()
    task = bar.add_task("starting", total=None)

    def report(message: str, fraction: float | None) -> None:
        bar.update(
            task,
            description=message,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
        )
        bar.refresh()

    with bar:
        yield report


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        # A refreshing thread would be there while workers are forked.
        auto_refresh=False,
    )
