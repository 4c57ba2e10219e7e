# SPDX-License-Identifier: MIT
"""Runs that were meant to race and did not; runs that were meant to fault and did not."""

import pytest

from spfemu.events import ABORT_REASONS, VMA_LOCK_ABORT_REASONS
from spfemu.measure import races

PROTOCOLS = {"SPF_ATTEMPT": "spf", "VMA_LOCK_ATTEMPT": "vma-lock"}


def point(build_point, attempts, **events):
    events = {attempts: 50, **events}
    return build_point(PROTOCOLS[attempts], 2, 1e6, writers=1, events=events)


def test_every_reason_says_whether_it_takes_somebody_else():
    reasons = [reason.name for reason in (*ABORT_REASONS, *VMA_LOCK_ABORT_REASONS)]
    named = [*races.ALONE, *(name for names in races.RACES.values() for name in names)]
    assert len(named) == len(set(named))
    assert set(reasons) <= set(named)


@pytest.mark.parametrize("attempts", races.RACES)
def test_without_a_race_a_run_with_writers_is_inconclusive(build_point, attempts):
    cold = dict.fromkeys(races.ALONE, 3)
    reason = races.no_race(point(build_point, attempts, **cold))
    assert "none of 50 faults of page_fault1 without the mmap lock met a writer" in reason


@pytest.mark.parametrize(
    ("attempts", "race"), [(attempts, n) for attempts, names in races.RACES.items() for n in names]
)
def test_one_race_is_enough(build_point, attempts, race):
    assert races.no_race(point(build_point, attempts, **{race: 1})) is None


def test_without_writers_there_is_nothing_to_meet(build_point):
    assert races.no_race(build_point("spf", 2, 1e6)) is None


def test_who_takes_the_lock_needs_no_race(build_point):
    assert races.no_race(build_point("classic", 2, 1e6, writers=1)) is None
