# SPDX-License-Identifier: MIT
"""Results in the order in which tables, plots and CSV show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spfemu.results import Estimate, Report, Result

QUANTITIES = {"faults_per_second": "faults", "operations_per_second": "operations"}
"""What is compared, and the noun for it."""


@dataclass(frozen=True)
class Series:
    """The points of one curve, by rising number of workers."""

    name: str
    """Protocol, or host."""
    points: tuple[Result, ...]

    @property
    def one_worker(self) -> Result | None:
        """The point that linear scaling starts from, or None."""
        return next((p for p in self.points if p.workers == 1), None)

    @property
    def curve(self) -> tuple[Result, ...]:
        """The points that may be joined: those with a core for each worker."""
        return tuple(p for p in self.points if not p.oversubscribed)

    @property
    def crowded(self) -> tuple[Result, ...]:
        """The points with more workers and writers than cores."""
        return tuple(p for p in self.points if p.oversubscribed)


def series_name(result: Result) -> str:
    """Return what the curve is called that `result` is on."""
    return result.protocol or result.target


def group(results: Iterable[Result]) -> list[Series]:
    """Put results into series, in the order in which each was first met, the host last."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(series_name(result), []).append(result)
    ordered = sorted(found, key=lambda name: name == "host")
    return [Series(name, tuple(sorted(found[name], key=lambda r: r.workers))) for name in ordered]


def quantity(report: Report) -> str:
    """Name of the rate that the report compares: of faults, unless there are none."""
    if report.ratios:
        return report.ratios[0].quantity
    emulated = [r for r in report.results if r.target == "emulator"] or report.results
    faults = any(r.faults_per_second.median for r in emulated)
    return "faults_per_second" if faults else "operations_per_second"


def rate_of(result: Result, name: str) -> Estimate:
    """Return the rate that `quantity` named."""
    faults = name == "faults_per_second"
    return result.faults_per_second if faults else result.operations_per_second


@dataclass(frozen=True)
class Attempts:
    """Faults of one point that were tried without the mmap lock."""

    how: str
    """What stood for the lock, as tables name it."""
    count: int
    success: float
    """Share that needed nothing else."""
    reasons: dict[str, int]
    """Why the others took the mmap lock, most frequent first; what was not met is left out."""


def attempts_of(result: Result) -> Attempts | None:
    """Return how faults without the mmap lock went, or None if none was tried."""
    events = result.events
    if count := events.get("SPF_ATTEMPT", 0):
        success = 1 - events.get("SPF_ABORT", 0) / count
        return Attempts("speculation", count, success, _reasons(events, "SPF_ABORT_"))
    if count := events.get("VMA_LOCK_ATTEMPT", 0):
        success = events.get("VMA_LOCK_SUCCESS", 0) / count
        reasons = _reasons(events, "VMA_LOCK_ABORT_", ("VMA_LOCK_RETRY", "VMA_LOCK_ACCESS_ERROR"))
        return Attempts("VMA lock", count, success, reasons)
    return None


def _reasons(events: dict[str, int], prefix: str, others: tuple[str, ...] = ()) -> dict[str, int]:
    """Return the counts of the events that begin with `prefix`, without it, and of `others`."""
    family = prefix.removesuffix("ABORT_")
    counts = {
        name.removeprefix(prefix).removeprefix(family): count
        for name, count in events.items()
        if count and (name.startswith(prefix) or name in others)
    }
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
