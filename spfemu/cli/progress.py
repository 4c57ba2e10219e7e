# SPDX-License-Identifier: MIT
"""Progress on stderr: a bar for somebody who waits at a terminal, now and then a line in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done (None: unknown)."""

LOG_PERIOD = 60.0
"""Seconds from one line to the next where stderr is no terminal."""


def _ignore(_message: str, _fraction: float | None) -> None:
    return


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Report]:
    """Show a bar while the block runs, or lines where stderr is no terminal; nothing if `quiet`."""
    if quiet:
        yield _ignore
        return
    if not sys.stderr.isatty():
        yield _lines()
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


def _lines() -> Report:
    """Return what prints a line when LOG_PERIOD has passed since the last one."""
    last = time.monotonic()

    def report(message: str, _fraction: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_PERIOD:
            last = now
            click.echo(f"spfemu: {message}", err=True)

    return report


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
