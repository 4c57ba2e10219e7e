# SPDX-License-Identifier: MIT
"""Whether what a run was meant to show happened at all."""

from __future__ import annotations

from spfemu.measure import build
from spfemu.results import Result

RACES = {
    "SPF_ATTEMPT": (
        "SPF_ABORT_ODD",
        "SPF_ABORT_VMA_COPY",
        "SPF_ABORT_PTE_MAP_LOCK_SEQ1",
        "SPF_ABORT_PTE_MAP_LOCK_PMD",
        "SPF_ABORT_PTE_MAP_LOCK_PTL",
        "SPF_ABORT_PTE_MAP_LOCK_SEQ2",
        "SPF_ABORT_FAULT",
        "SPF_ABORT_PAGE_LOCK",
        "SPF_ABORT_MMU_NOTIFIER",
    ),
    "VMA_LOCK_ATTEMPT": (
        "VMA_LOCK_RETRY",
        "VMA_LOCK_MISS",
        "VMA_LOCK_ABORT_SEQ",
        "VMA_LOCK_ABORT_BUSY",
        "VMA_LOCK_ABORT_SEQ_RECHECK",
        "VMA_LOCK_ABORT_MM",
        "VMA_LOCK_ABORT_RANGE",
    ),
}
"""By what counts faults without the mmap lock: what only somebody else can have caused of them."""
ALONE = (
    "SPF_ABORT_UNMAPPED",
    "SPF_ABORT_NO_SPECULATE",
    "SPF_ABORT_ACCESS_ERROR",
    "SPF_ABORT_PUD",
    "SPF_ABORT_PMD",
    "SPF_ABORT_ANON_VMA",
    "SPF_ABORT_USERFAULTFD",
    "SPF_ABORT_SWAP",
    "SPF_ABORT_RECLAIM",
    "SPF_ABORT_PAGE_CACHE",
    "VMA_LOCK_ABORT_UNMAPPED",
    "VMA_LOCK_ABORT_NOT_ANON",
    "VMA_LOCK_ABORT_ANON_VMA",
    "VMA_LOCK_ABORT_USERFAULTFD",
)
"""Reasons for which it takes nobody else: what is mapped, and what is not there yet."""


def no_race(result: Result) -> str | None:
    """Say that writers ran beside faults without the mmap lock and none met one; else None.

    Such a run shows nothing about what protects the faults, however it ended.  A monitor
    is a writer that changes no mapping.
    """
    if not result.writers or build.workload(result.workload).monitors:
        return None
    for attempts, races in RACES.items():
        tried = result.events.get(attempts, 0)
        if tried and not any(result.events.get(name, 0) for name in races):
            return (
                f"none of {tried} faults of {result.workload} without the mmap lock met a writer: "
                "use more --seconds, --writers or a higher --rate"
            )
    return None


def stopped(result: Result) -> str | None:
    """Say that a signal stopped workers in samples that count all the same; else None."""
    count = sum(probe.stopped for probe in result.probes)
    if not count:
        return None
    return (
        f"a signal stopped a worker in {count} of {result.repeats} samples, whose rates are too low"
    )


def no_fault(result: Result) -> str | None:
    """Say that a workload which is there to fault took no fault in most windows; else None."""
    if not build.workload(result.workload).faults or result.faults_per_second.median > 0:
        return None
    return (
        f"{result.workload} took no fault while it was measured: use longer samples (--seconds) "
        "or fewer workers"
    )
