# SPDX-License-Identifier: MIT
"""A segment in which much has happened, to be corrupted."""

from collections.abc import Iterator

import pytest
from good_segment import GoodSegment, build


@pytest.fixture(scope="session")
def built() -> GoodSegment:
    """The segment as `build` leaves it, with a copy to go back to."""
    return build()


@pytest.fixture
def good(built: GoodSegment) -> Iterator[GoodSegment]:
    """A segment without any violation."""
    yield built
    built.restore()
