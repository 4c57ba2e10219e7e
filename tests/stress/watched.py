# SPDX-License-Identifier: MIT
"""A watchdog that a test can look through."""

from spfemu.measure.plan import Plan
from spfemu.stress import watchdog as watchdogs
from spfemu.stress.watchdog import Watchdog

HANG_SECONDS = 20.0


class Watched(Watchdog):
    """A watchdog over a segment without processes; `clock` is its time."""

    def __init__(self, segment, monkeypatch):
        self.clock = 100.0
        self.sleeping = set()
        monkeypatch.setattr(watchdogs.time, "monotonic", lambda: self.clock)
        plan = Plan("mixed", workers=2, writers=1)
        super().__init__(segment, plan, HANG_SECONDS)

    def _asleep(self, _workers, cpu):
        return cpu in self.sleeping

    def looks(self, seconds, run=(), operations=0):
        """Look for so long, while the CPUs of `run` do steps and CPU 0 ends operations."""
        for _ in range(round(seconds * 4)):
            self.clock += 0.25
            self.segment.cpus["operations"][0] += operations
            for cpu in run:
                self.segment.stress_cpus["relaxes"][cpu] += 5000
            self(None)
