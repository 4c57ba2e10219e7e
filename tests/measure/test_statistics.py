# SPDX-License-Identifier: MIT
"""Medians, intervals and ratios against known answers."""

import numpy as np
import pytest

from spfemu.measure.statistics import estimate, ratio


def test_one_sample_is_its_own_interval():
    assert estimate([5.0]) == estimate([5.0])
    found = estimate([5])
    assert (found.median, found.low, found.high, found.samples) == (5.0, 5.0, 5.0, (5.0,))


def test_interval_of_two_samples_is_their_range():
    found = estimate([10.0, 30.0])
    assert (found.median, found.low, found.high) == (20.0, 10.0, 30.0)


def test_interval_holds_the_median_and_lies_within_the_samples():
    samples = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 7.0]
    found = estimate(samples)
    assert found.median == 4.0
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)


def test_same_samples_give_the_same_interval():
    samples = [float(x) for x in np.random.default_rng(3).normal(100, 10, 12)]
    assert estimate(samples) == estimate(samples)


@pytest.mark.parametrize("count", [6, 7, 9, 15])
def test_interval_covers_the_true_median_as_often_as_it_says(count):
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(400):
        found = estimate(rng.normal(100, 10, count))
        inside += found.low <= 100 <= found.high
    assert inside >= 360  # 95 % of 400 is 380; below 360 has a chance of one in fifty thousand


def test_ratio_is_taken_round_by_round():
    # a machine that is twice as slow in every other round does not show in the ratio
    found = ratio([20.0, 10.0, 20.0, 10.0], [10.0, 5.0, 10.0, 5.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_ratio_of_rounds_that_differ():
    found = ratio([2.0, 6.0, 4.0], [1.0, 2.0, 1.0])
    assert found.samples == (2.0, 3.0, 4.0)
    assert found.median == 3.0


@pytest.mark.parametrize(
    ("numerators", "denominators"), [([1.0], []), ([], []), ([1.0], [0.0]), ([1.0], [-1.0])]
)
def test_ratio_refuses_what_has_none(numerators, denominators):
    with pytest.raises(ValueError, match=r"ratio|median"):
        ratio(numerators, denominators)
