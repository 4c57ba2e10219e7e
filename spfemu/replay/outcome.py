# SPDX-License-Identifier: MIT
"""What a replay came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from spfemu.trace.maps import Difference, Mapping

KEPT_DIFFERENCES = 20


@dataclass(frozen=True)
class Final:
    """The map of one process at its end; `difference` is None if the recording has none."""

    pid: int
    mappings: tuple[Mapping, ...]
    difference: Difference | None


@dataclass
class Outcome:
    """What a replay came to."""

    protocol: str
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """Calls that failed here, by name."""
    different: Counter[str] = field(default_factory=Counter)
    """Calls with another result than recorded, by name; the first ones are in `differences`."""
    differences: list[str] = field(default_factory=list)
    chosen: int = 0
    """Mappings whose place the kernel chose; `moved` of them the emulated one would place
    elsewhere, the first of which are in `places`."""
    moved: int = 0
    places: list[str] = field(default_factory=list)
    processes: int = 0
    threads: int = 0
    finals: list[Final] = field(default_factory=list)
    touch_failed: int = 0
    events: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lines: int = 0
    recorded_seconds: float | None = None
    seconds: float = 0.0
    short_of_frames: bool = False
    partial: bool = False

    @property
    def compared(self) -> list[Final]:
        """The maps for which the recording has one."""
        return [f for f in self.finals if f.difference is not None]

    @property
    def disagreeing(self) -> list[Final]:
        """Those that differ."""
        return [f for f in self.compared if f.difference]

    @property
    def attempts(self) -> int:
        """Faults tried without the mmap lock."""
        return self.events["SPF_ATTEMPT"] + self.events["VMA_LOCK_ATTEMPT"]

    @property
    def speculation(self) -> float | None:
        """Share of attempts that succeeded; None if there was none."""
        if self.attempts == 0:
            return None
        speculative = self.events["SPF_ATTEMPT"] - self.events["SPF_ABORT"]
        return (speculative + self.events["VMA_LOCK_SUCCESS"]) / self.attempts

    @property
    def aborts(self) -> dict[str, int]:
        """Why attempts failed, the most frequent reason first."""
        reasons = {
            name: count
            for name, count in self.events.items()
            if count and name.startswith(("SPF_ABORT_", "VMA_LOCK_ABORT_"))
        }
        return dict(sorted(reasons.items(), key=lambda item: -item[1]))
