# SPDX-License-Identifier: MIT
"""The hunt for broken promises: oracles that watch kernel functions while everything runs.

An oracle is a module of kernel functions in `oracles`.  Functions that it marks
`spfemu.kernel.around` stand around the kernel functions of their names, whoever defines those, an
override included; what else it holds is added to the program.  ::

    program = compose(workload, protocol, overrides=files, oracles=[oracle, another])
    segment = Segment.create(Geometry(nr_cpus=4, stress=1))

A later oracle stands around an earlier one.  What the program does not have or never calls is not
stood around; a name that no kernel, protocol or workload has is an error.  An oracle that sees a
promise broken calls ``stress_violation`` (violation.py), which any program with oracles has: the
first one is kept in the segment's STRESS and the CPU stops.  An oracle that stands around one of
the hooks (hooks.py) is told every step of the program.  A measured program has none of this.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterable

from spfemu.engines.source import KernelFunction, functions_of

COMMON = ("violation", "hooks", "lock_class")
"""Modules of kernel functions that every program with oracles has."""


def oracle_layers(oracles: Iterable[types.ModuleType]) -> list[dict[str, KernelFunction]]:
    """Return the functions of oracles and what oracles use, as `wrappers` for `link`."""
    common = [importlib.import_module(f"{__name__}.{name}") for name in COMMON]
    return [functions_of(module) for module in [*common, *oracles]]
