# SPDX-License-Identifier: MIT
"""Steps of a program: which primitives are one, how each orders memory, who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Step(IntEnum):
    """Kinds of steps at which a stepped function stops; FUTEX_* are fixed by the shim."""

    ENTER = 1
    RETURN = 2
    LOAD = 3
    STORE = 4
    RMW = 5
    FENCE = 6
    RELAX = 7
    PAGE = 8
    CLOCK = 9
    FUTEX_WAIT = 20
    FUTEX_WAKE = 21
    PANIC = 22


@dataclass(frozen=True)
class Site:
    """A place in the source at which stepped code stops."""

    function: str
    line: int
    primitive: str


HOOKS = ("trace_enter", "trace_return", "trace_access")
"""Kernel functions that instrumented code calls with a site (an index of `sites`) and a word: the
first argument, the first result, or the address."""

# How each primitive orders memory, as LLVM calls it.

LOADS = {"load": "unordered", "read_once": "monotonic", "smp_load_acquire": "acquire"}
STORES = {"store": "unordered", "write_once": "monotonic", "smp_store_release": "release"}
RMW = {
    "xchg": ("xchg", "seq_cst"),
    "atomic_fetch_add": ("add", "seq_cst"),
    "atomic_fetch_add_acquire": ("add", "acquire"),
    "atomic_fetch_add_release": ("add", "release"),
    "atomic_fetch_add_relaxed": ("add", "monotonic"),
    "atomic_fetch_or": ("or", "seq_cst"),
    "atomic_fetch_and": ("and", "seq_cst"),
}
"""Operation and order."""
CMPXCHG = {
    "cmpxchg": ("seq_cst", "acquire"),
    "cmpxchg_acquire": ("acquire", "acquire"),
    "cmpxchg_release": ("release", "monotonic"),
    "cmpxchg_relaxed": ("monotonic", "monotonic"),
}
"""Order if it succeeds and if it fails."""
FENCES = {"smp_mb": "seq_cst", "smp_rmb": "acquire", "smp_wmb": "release"}

ORDERS = {
    **LOADS,
    **STORES,
    **FENCES,
    **{name: order for name, (_, order) in RMW.items()},
    **{name: order for name, (order, _) in CMPXCHG.items()},
}
"""Memory order of each primitive that has one; of a cmpxchg, if it succeeds."""

STEP_KINDS = (
    dict.fromkeys(LOADS, Step.LOAD)
    | dict.fromkeys(STORES, Step.STORE)
    | dict.fromkeys([*RMW, *CMPXCHG], Step.RMW)
    | dict.fromkeys(FENCES, Step.FENCE)
    | {
        "cpu_relax": Step.RELAX,
        "clear_page": Step.PAGE,
        "copy_page": Step.PAGE,
        "read_cycles": Step.CLOCK,
        "futex_wait": Step.FUTEX_WAIT,
        "futex_wake": Step.FUTEX_WAKE,
        "panic": Step.PANIC,
    }
)

HOOK_OF = {Step.ENTER: "trace_enter", Step.RETURN: "trace_return"} | dict.fromkeys(
    (Step.LOAD, Step.STORE, Step.RMW, Step.PAGE, Step.FUTEX_WAIT, Step.FUTEX_WAKE), "trace_access"
)
"""The hook that is called at a step of each kind."""
