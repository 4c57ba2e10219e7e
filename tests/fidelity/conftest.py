# SPDX-License-Identifier: MIT
"""Fixtures of the comparison with the real kernel."""

from pathlib import Path

import pytest

MISTAKES = Path(__file__).parent / "mistakes"


@pytest.fixture(scope="session", autouse=True)
def own_cache(request):
    """Keep compiled objects of the tests out of the user's cache, but from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPFEMU_CACHE_DIR", str(request.config.cache.mkdir("objects")))
        yield


@pytest.fixture
def mistake():
    """Return a function that names the override file of a mistake."""
    return lambda name: str(MISTAKES / f"{name}.py")
