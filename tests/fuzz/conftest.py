# SPDX-License-Identifier: MIT
"""What the fuzz tests share: kept objects apart from the user's, seeds that can be given."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(request):
    """Keep compiled objects of the tests out of the user's cache, but from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPFEMU_CACHE_DIR", str(request.config.cache.mkdir("objects")))
        yield
