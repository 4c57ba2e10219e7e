# SPDX-License-Identifier: MIT
"""Short plays of two or three CPUs, each of which shows a broken promise if the kernel breaks it.

A schedule is a function that takes a `Process` and a seed, marked `schedule` (it plays one
interleaving, step by step) or `random_orders` (each seed is another one).  It raises `BrokenError`
if a result is wrong; that all invariants hold at the end is checked by who plays it.  The kernel as
it is survives every one of them.
"""

from __future__ import annotations

import importlib
import pkgutil

from spfemu.stress.schedules.schedule import Schedule


def schedules() -> dict[str, Schedule]:
    """All schedules by name."""
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    found = [value for m in modules for value in vars(m).values() if isinstance(value, Schedule)]
    return {one.name: one for one in found}
