# SPDX-License-Identifier: MIT
"""The Python side of latency histograms is the inverse of the kernel's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.layout import HIST_BUCKETS
from spfemu.measure.latency import bucket_range, merge, percentiles_ns
from spfemu.mm import latency as kernel_side

GHZ = 1e9  # a cycle is a nanosecond


@pytest.fixture(scope="module")
def histogram_index():
    """Return the kernel's function."""
    only = {"histogram_index": functions_of(kernel_side)["histogram_index"]}
    return PlainEngine(link([only], {})).functions["histogram_index"]


def test_buckets_follow_each_other_without_gap():
    expected = 0
    for index in range(HIST_BUCKETS):
        low, high = bucket_range(index)
        assert low == expected
        assert high >= low
        expected = high + 1
    assert expected == 1 << 63 or expected == 1 << 64


def test_no_bucket_beyond_the_last():
    for index in (-1, HIST_BUCKETS):
        with pytest.raises(IndexError):
            bucket_range(index)


@given(st.integers(0, (1 << 62) - 1))
def test_value_is_in_the_bucket_that_the_kernel_chooses(histogram_index, value):
    low, high = bucket_range(histogram_index(value))
    assert low <= value <= high
    assert high - low <= max(0, low // 32)


def test_percentiles_of_known_values(histogram_index):
    buckets = np.zeros(HIST_BUCKETS, np.int64)
    values = [10] * 900 + [20] * 90 + [40] * 9 + [60]
    for value in values:
        buckets[histogram_index(value)] += 1
    found = percentiles_ns(buckets, 60, GHZ)
    assert found == {"p50": 10, "p90": 10, "p99": 20, "p99.9": 40, "max": 60}


def test_percentiles_are_close_for_large_values(histogram_index):
    values = np.random.default_rng(2).lognormal(8, 1, 5000).astype(int)
    buckets = np.zeros(HIST_BUCKETS, np.int64)
    for value in values:
        buckets[histogram_index(int(value))] += 1
    found = percentiles_ns(buckets, int(values.max()), 2 * GHZ)
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[name] == pytest.approx(np.percentile(values, share) / 2, rel=0.04)
    assert found["max"] == values.max() / 2


def test_no_figure_is_above_the_largest_value(histogram_index):
    buckets = np.zeros(HIST_BUCKETS, np.int64)
    buckets[histogram_index(1000)] = 1
    found = percentiles_ns(buckets, 1000, GHZ)
    assert found["max"] == 1000
    assert max(found.values()) == 1000


def test_empty_histogram_has_no_percentiles():
    assert percentiles_ns(np.zeros(HIST_BUCKETS, np.int64), 0, GHZ) is None


def test_merge_adds():
    one, two = np.zeros((2, HIST_BUCKETS), np.int64)
    one[3], two[3], two[5] = 1, 2, 4
    merged = merge([one, two])
    assert (merged[3], merged[5], merged.sum()) == (3, 4, 7)
