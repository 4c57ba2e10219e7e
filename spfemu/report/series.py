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


def speculation_success(result: Result) -> float | None:
    """Share of speculative attempts that were not aborted, or None if there was no attempt."""
    attempts = result.events.get("SPF_ATTEMPT", 0)
    if attempts == 0:
        return None
    return 1 - result.events.get("SPF_ABORT", 0) / attempts


def abort_reasons(result: Result) -> dict[str, int]:
    """Why attempts were aborted, most frequent first; reasons that were not met are left out."""
    counts = {
        name: count
        for name, count in result.events.items()
        if name.startswith("SPF_ABORT_") and count
    }
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
