# SPDX-License-Identifier: MIT
"""Corruptions: functions that break one invariant of the good segment, and what must be reported.

::

    corruptions = Corruptions()

    @corruptions.reports("^zone_lock is held by CPU 1$")
    def zone_lock_held(good: GoodSegment) -> None:
        good.segment.system["zone_lock"] = 2

    @corruptions.parametrize
    def test_reported(good, corrupt, patterns): ...

There must be as many messages as patterns, each matched by a pattern of its own.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from good_segment import GoodSegment

from spfemu.checks import check_segment

Corrupt = Callable[[GoodSegment], None]


class Corruptions:
    """The corruptions of one test module."""

    def __init__(self) -> None:
        self.all: list[tuple[Corrupt, tuple[str, ...]]] = []

    def reports(self, *patterns: str) -> Callable[[Corrupt], Corrupt]:
        """Mark a corruption with the patterns of what must be reported."""

        def mark(corrupt: Corrupt) -> Corrupt:
            self.all.append((corrupt, patterns))
            return corrupt

        return mark

    @property
    def parametrize(self) -> Any:
        """Decorator of the test that runs them all."""
        ids = [corrupt.__name__ for corrupt, _ in self.all]
        return pytest.mark.parametrize(("corrupt", "patterns"), self.all, ids=ids)


def check_reported(good: GoodSegment, corrupt: Corrupt, patterns: tuple[str, ...]) -> None:
    """Corrupt the segment and compare what is reported."""
    corrupt(good)
    left = check_segment(good.segment)
    missing = []
    for pattern in patterns:
        found = next((m for m in left if re.search(pattern, m)), None)
        if found is None:
            missing.append(pattern)
        else:
            left.remove(found)
    assert not missing, f"not reported: {missing}; reported instead: {left}"
    assert not left, f"reported beyond what was corrupted: {left}"
