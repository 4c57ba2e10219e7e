# SPDX-License-Identifier: MIT
"""Numbers as people read them."""

import pytest

from spfemu.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (999.4, "999"),
        (99.96, "100"),
        (9.996, "10.0"),
        (999.6, "1.00 k"),
        (1234, "1.23 k"),
        (999_600, "1.00 M"),
        (12_345_678, "12.3 M"),
        (1.5e9, "1.50 G"),
    ],
)
def test_rates_have_three_digits_and_a_prefix(value, text):
    assert numbers.rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4096, "4 KiB"), (16 << 20, "16 MiB"), (1 << 30, "1 GiB"), (4097, "4097 B"), (0, "0 B")],
)
def test_sizes_lose_nothing(value, text):
    assert numbers.size(value) == text


def test_what_is_not_quite_all_is_not_shown_as_all():
    assert numbers.percent(1.0) == "100.00 %"
    assert numbers.percent(0.999999) == "99.99 %"
    assert numbers.percent(0.5) == "50.00 %"


def test_nouns_agree_with_their_number():
    assert [numbers.count(n, "worker") for n in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]


def test_ratios_have_two_decimals():
    assert [numbers.ratio(v) for v in (0.5, 2.345, 123.4)] == ["0.50", "2.35", "123"]


def test_ticks_have_no_zeros_at_their_end():
    assert [numbers.tick(v) for v in (0, 500e3, 2.5e6, 4e6)] == ["0", "500 k", "2.5 M", "4 M"]
