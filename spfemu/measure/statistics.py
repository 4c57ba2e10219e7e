# SPDX-License-Identifier: MIT
"""Medians with intervals, and ratios of what was measured in the same round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
MIN_SAMPLES = 6
"""The range of so many holds the true median with 97 %; that of five only with 94 %."""


@dataclass(frozen=True)
class Estimate:
    """A median and the interval around it."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


def estimate(samples: Sequence[float]) -> Estimate:
    """Median of `samples` with its interval from order statistics, at 95 % confidence or more.

    Nothing is assumed of the distribution.  With fewer than MIN_SAMPLES there is no such interval
    and the range of the samples is given.  Raises ValueError without samples.
    """
    values = tuple(float(s) for s in samples)
    if not values:
        raise ValueError("there is no median of no samples")
    median = float(np.median(values))
    if len(values) < MIN_SAMPLES:
        return Estimate(median, min(values), max(values), values)
    from scipy.stats import quantile_test  # a third of a second: only where it is used

    interval = quantile_test(values, q=median, p=0.5).confidence_interval(CONFIDENCE)
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
