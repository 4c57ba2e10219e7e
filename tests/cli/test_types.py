# SPDX-License-Identifier: MIT
"""Values on the command line: what is understood and what is refused with a reason."""

import click
import pytest

from spfemu.cli import types


def convert(kind, text):
    return kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4K", 4096),
        ("4k", 4096),
        ("2M", 2 << 20),
        ("2MiB", 2 << 20),
        ("1.5G", 3 << 29),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text, size):
    assert convert(types.Size(), text) == size


@pytest.mark.parametrize("text", ["", "K", "4X", "-4K", "1e3", "0.3", "4 096"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"size|bytes"):
        convert(types.Size(), text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2", 2), ("0.5", 0.5), (".5", 0.5), ("200ms", 0.2), ("1min", 60)]
)
def test_seconds(text, seconds):
    assert convert(types.Seconds(), text) == pytest.approx(seconds)


def test_more_seconds_than_any_clock_takes_are_refused():
    with pytest.raises(click.BadParameter, match="is more than a week"):
        convert(types.Seconds(), "9" * 400)


@pytest.mark.parametrize("text", ["", "two", "-1", "1h", "nan", "inf"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(click.BadParameter, match="is no time"):
        convert(types.Seconds(), text)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("1", (1,)),
        ("2,1,2", (1, 2)),
        ("1-4", (1, 2, 3, 4)),
        ("1-8:3", (1, 4, 7)),
        ("1..20x2", (1, 2, 4, 8, 16)),
        ("1, 6-7", (1, 6, 7)),
    ],
)
def test_counts(text, counts):
    assert convert(types.Counts(), text) == counts


@pytest.mark.parametrize(
    "text", ["", "one", "4-1", "1-4:0", "1..8x1", "0..8x2", "8..1x2", "1,,2", "-3", "1-600",
             "9999999"]
)  # fmt: skip
def test_what_are_no_counts_is_refused(text):
    with pytest.raises(click.BadParameter, match="'"):
        convert(types.Counts(), text)


@pytest.mark.parametrize(("text", "seed"), [("42", 42), ("0x2a", 42), ("0", 0)])
def test_seeds(text, seed):
    assert convert(types.Seed(), text) == seed


@pytest.mark.parametrize("text", ["", "x", "-1", str(1 << 62)])
def test_what_is_no_seed_is_refused(text):
    with pytest.raises(click.BadParameter, match="seed"):
        convert(types.Seed(), text)


@pytest.mark.parametrize(("text", "overhead"), [("250", 250.0), ("0.5", 0.5), ("host", "host")])
def test_overheads(text, overhead):
    assert convert(types.Overhead(), text) == overhead


def test_what_is_no_overhead_is_refused():
    with pytest.raises(click.BadParameter, match="nor 'host'"):
        convert(types.Overhead(), "hots")


def test_names_are_kept_in_order_and_once():
    kind = types.Names(lambda: ["spf"])
    assert convert(kind, "spf, classic,spf") == ("spf", "classic")
    with pytest.raises(click.BadParameter, match="no name"):
        convert(kind, ",")


def test_a_choice_suggests_the_nearest():
    with pytest.raises(click.BadParameter, match="did you mean 'threads'"):
        convert(types.Choice(("threads", "processes")), "thread")
