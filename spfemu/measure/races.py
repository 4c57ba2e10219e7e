# SPDX-License-Identifier: MIT
"""Whether what a run was meant to show happened at all."""

from __future__ import annotations

from spfemu.measure import build
from spfemu.results import Result

RACES = (
    "SPF_ABORT_ODD",
    "SPF_ABORT_VMA_COPY",
    "SPF_ABORT_PTE_MAP_LOCK_SEQ1",
    "SPF_ABORT_PTE_MAP_LOCK_PMD",
    "SPF_ABORT_PTE_MAP_LOCK_PTL",
    "SPF_ABORT_PTE_MAP_LOCK_SEQ2",
)
"""Aborts that only somebody else can have caused; the others may come from a cold mapping."""


def no_race(result: Result) -> str | None:
    """Say that writers ran beside speculative faults and none of these met one; else None.

    Such a run shows nothing about what protects the faults, however it ended.
    """
    attempts = result.events.get("SPF_ATTEMPT", 0)
    if not result.writers or not attempts:
        return None
    if any(result.events.get(name, 0) for name in RACES):
        return None
    return (
        f"none of {attempts} speculative faults of {result.workload} met a writer: use more "
        "--seconds, --writers or a higher --rate"
    )


def no_fault(result: Result) -> str | None:
    """Say that a workload which is there to fault took no fault in most windows; else None."""
    if not build.workload(result.workload).faults or result.faults_per_second.median > 0:
        return None
    return (
        f"{result.workload} took no fault while it was measured: use longer samples (--seconds) "
        "or fewer workers"
    )
