# SPDX-License-Identifier: MIT
"""Copies of a latched tree that differ are reported."""

from collections.abc import Iterator

import pytest
from corruption import Corrupt, Corruptions, check_reported
from good_segment import GoodSegment, area, build

from spfemu.checks import check_segment

corruptions = Corruptions()


@pytest.fixture(scope="module")
def latched() -> GoodSegment:
    """A segment of a kernel with CONFIG_VMA_LATCH."""
    return build({"CONFIG_VMA_LATCH": 1})


@pytest.fixture
def good_latch(latched: GoodSegment) -> Iterator[GoodSegment]:
    yield latched
    latched.restore()


def test_the_good_segment_is_latched_and_good(good_latch: GoodSegment) -> None:
    assert (good_latch.segment.mms["mm_rb_seq"] > 0).all()
    assert check_segment(good_latch.segment) == []


@corruptions.reports(r"^mm_rb_seq of mm 1 is odd \(\d+\): a change of the tree never ended$")
def latch_odd(good: GoodSegment) -> None:
    good.segment.mms["mm_rb_seq"][1] += 1


@corruptions.reports("^the copies of the tree of mm 0 have roots 0x[0-9a-f]+ and 0x0$")
def second_root_lost(good: GoodSegment) -> None:
    good.segment.mms["mm_rb_latch"][0] = 0


@corruptions.reports(r"^mm 1 has a second copy of its tree, but mm_rb_seq is 0$")
def second_copy_without_a_latch(good: GoodSegment) -> None:
    good.segment.mms["mm_rb_seq"][1] = 0


@corruptions.reports("^tree of mm 0: VMA .* has latch_left 0x9, but rb_left 0x")
def left_differs(good: GoodSegment) -> None:
    good.vma(area(0))["latch_left"] = 9


@corruptions.reports("^tree of mm 0: VMA .* has latch_right 0x9, but rb_right 0x")
def right_differs(good: GoodSegment) -> None:
    good.vma(area(0))["latch_right"] = 9


@corruptions.reports("^tree of mm 0: VMA .* has latch_parent 0x9, but rb_parent 0x")
def parent_differs(good: GoodSegment) -> None:
    good.vma(area(0))["latch_parent"] = 9


@corruptions.reports("^tree of mm 0: VMA .* has latch_color 0x9, but rb_color 0x")
def color_differs(good: GoodSegment) -> None:
    good.vma(area(0))["latch_color"] = 9


@corruptions.parametrize
def test_reported(good_latch: GoodSegment, corrupt: Corrupt, patterns: tuple[str, ...]) -> None:
    check_reported(good_latch, corrupt, patterns)
