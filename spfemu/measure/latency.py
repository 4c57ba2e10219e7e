# SPDX-License-Identifier: MIT
"""Read the latency histograms that CPUs keep (the inverse of mm/latency.py)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from spfemu.layout import HIST_BUCKETS, HIST_SUB_BITS

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_LINEAR = 2 << HIST_SUB_BITS


def bucket_range(index: int) -> tuple[int, int]:
    """Smallest and largest value [cycles] that bucket `index` counts.

    Raises IndexError if there is no such bucket.
    """
    if not 0 <= index < HIST_BUCKETS:
        raise IndexError(f"no bucket {index}: there are {HIST_BUCKETS}")
    if index < _LINEAR:
        return index, index
    exponent = (index >> HIST_SUB_BITS) - 1
    mantissa = index - (exponent << HIST_SUB_BITS)
    return mantissa << exponent, ((mantissa + 1) << exponent) - 1


def percentiles_ns(
    buckets: NDArray[np.int64], largest: int, cycles_per_second: float
) -> dict[str, float] | None:
    """Percentiles and the maximum [ns] of a histogram, or None if it is empty.

    A percentile is the middle of its bucket, at most 1.6 % off.  `largest` is the largest value
    seen [cycles]; no figure is above it.
    """
    total = int(buckets.sum())
    if total == 0:
        return None
    reached = np.cumsum(buckets)
    last = bucket_range(int(np.flatnonzero(buckets)[-1]))[1]
    limit = min(largest, last)
    to_ns = 1e9 / cycles_per_second
    result = {}
    for name, share in PERCENTILES.items():
        index = int(np.searchsorted(reached, max(1, int(np.ceil(share * total)))))
        low, high = bucket_range(index)
        result[name] = min((low + high) / 2, limit) * to_ns
    result["max"] = limit * to_ns
    return result


def merge(histograms: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Add histograms up."""
    total = np.zeros(HIST_BUCKETS, np.int64)
    for histogram in histograms:
        total += histogram
    return total
