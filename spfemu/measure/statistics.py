# SPDX-License-Identifier: MIT
"""Medians with bootstrap intervals, and ratios of what was measured in the same round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 4000
SEED = 1
"""Of the resampling, so that the same samples give the same interval."""


@dataclass(frozen=True)
class Estimate:
    """A median and the interval around it; with one sample the interval is that sample."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


def estimate(samples: Sequence[float]) -> Estimate:
    """Median of `samples` with its percentile bootstrap interval at 95 % confidence.

    Raises ValueError without samples.
    """
    values = tuple(float(s) for s in samples)
    if not values:
        raise ValueError("there is no median of no samples")
    median = float(np.median(values))
    if len(set(values)) == 1:
        return Estimate(median, median, median, values)
    from scipy.stats import bootstrap  # a third of a second: only where it is used

    interval = bootstrap(
        (np.asarray(values),),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
        vectorized=True,
    ).confidence_interval
    return Estimate(median, float(interval.low), float(interval.high), values)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of two series that were taken in turns: the median of the ratios round by round.

    Pairing takes out what made a whole round slow.  Raises ValueError if the series differ in
    length, are empty, or a denominator is not positive.
    """
    if len(numerators) != len(denominators):
        raise ValueError("a ratio needs as many numerators as denominators")
    if any(d <= 0 for d in denominators):
        raise ValueError("a ratio needs positive denominators")
    return estimate([n / d for n, d in zip(numerators, denominators, strict=True)])
