# SPDX-License-Identifier: MIT
"""Hardware counters of the workers, where the machine has them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from spfemu import shims

KINDS = {
    "cycles": shims.PERF_CYCLES,
    "instructions": shims.PERF_INSTRUCTIONS,
    "cache_references": shims.PERF_CACHE_REFERENCES,
    "cache_misses": shims.PERF_CACHE_MISSES,
}


class HardwareCounters:
    """Counters on some threads, user mode only; those that are not there are not reported."""

    def __init__(self, threads: Iterable[int]) -> None:
        library = shims.load()
        self._open: list[dict[str, int]] = []
        self.missing: dict[str, str] = {}
        """Why a kind of counter is not there."""
        for thread in threads:
            opened: dict[str, int] = {}
            for name, kind in KINDS.items():
                if name in self.missing:
                    continue
                handle = library.spf_perf_open(kind, thread, 0)
                if handle < 0:
                    self.missing[name] = _reason(-handle)
                else:
                    opened[name] = handle
            self._open.append(opened)

    def __enter__(self) -> Self:
        """Return itself; counting starts with `start`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all counters."""
        library = shims.load()
        for opened in self._open:
            for handle in opened.values():
                library.spf_perf_close(handle)
        self._open = []

    def start(self) -> None:
        """Begin to count."""
        library = shims.load()
        for opened in self._open:
            for handle in opened.values():
                library.spf_perf_enable(handle)

    def stop(self) -> list[dict[str, int]] | None:
        """End counting and return the counts of each thread; None if there is no counter."""
        library = shims.load()
        for opened in self._open:
            for handle in opened.values():
                library.spf_perf_disable(handle)
        counts = []
        for opened in self._open:
            values = {name: library.spf_perf_read(h) for name, h in opened.items()}
            # a counter that never got the hardware has counted nothing, which is not zero
            counts.append({name: v for name, v in values.items() if v >= 0})
        return counts if any(counts) else None


def unavailable() -> dict[str, str]:
    """Which hardware counters this machine lacks, and why."""
    with HardwareCounters([os.getpid()]) as counters:
        return dict(counters.missing)


def _reason(number: int) -> str:
    if number in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        return "this machine has no such counter"
    if number in (errno.EACCES, errno.EPERM):
        return "not permitted: lower /proc/sys/kernel/perf_event_paranoid to 2"
    return os.strerror(number)
