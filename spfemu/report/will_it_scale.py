# SPDX-License-Identifier: MIT
"""CSV in will-it-scale's columns, one curve per file, for the tools that read those.

A curve of threads leaves the columns of processes empty, and the other way round.  `linear` is
what one task did, times their number.
"""

from __future__ import annotations

from spfemu.report.series import Series
from spfemu.results import Result

HEADER = "tasks,processes,processes_idle,threads,threads_idle,linear"
NO_TASKS = "0,0,100,0,100,0"
"""will-it-scale's first row."""


def to_csv(series: Series) -> str:
    """Return the curve as CSV; points with more workers than cores are no part of it."""
    one = series.one_worker
    base = one.operations_per_second.median if one is not None else None
    return "\n".join([HEADER, NO_TASKS, *(_row(p, base) for p in series.curve)]) + "\n"


def _row(point: Result, one_task: float | None) -> str:
    idle = "" if point.idle_percent is None else f"{point.idle_percent:.2f}"
    measured = [f"{point.operations_per_second.median:.0f}", idle]
    empty = ["", ""]
    columns = [*empty, *measured] if point.mode == "threads" else [*measured, *empty]
    linear = "" if one_task is None else f"{one_task * point.workers:.0f}"
    return ",".join([str(point.workers), *columns, linear])
