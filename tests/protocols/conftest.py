# SPDX-License-Identifier: MIT
"""Fixtures of the protocols' tests: a stepped process under a protocol."""

import functools

import pytest

from spfemu.engines.stepped import StepEngine
from spfemu.stress.schedules import process


@pytest.fixture(scope="session", autouse=True)
def own_cache(request):
    """Keep compiled objects of the tests out of the user's cache, but from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPFEMU_CACHE_DIR", str(request.config.cache.mkdir("objects")))
        yield


@pytest.fixture(scope="session", params=[1, 0], ids=["rcu-tables", "irq-tables"])
def spf_engine(own_cache, request):
    """The kernel with spf, stepped, with either scheme that frees page tables."""
    config = {
        "CONFIG_MMU_GATHER_RCU_TABLE_FREE": request.param,
        # the kernel that the series is for: later, mprotect saves the faults that reuse a page
        "CONFIG_LINUX_VERSION": 0x50C,
    }
    return StepEngine(process.program("spf", **config))


@pytest.fixture(scope="session")
def engine_of(own_cache):
    """Return a function that makes the stepped kernel with a protocol, once."""
    return functools.cache(lambda protocol: StepEngine(process.program(protocol)))


@pytest.fixture
def spf(spf_engine):
    """A process under spf."""
    with process.running(spf_engine) as made:
        yield made


@pytest.fixture
def under(engine_of, request):
    """A process under the protocol that the test module names in PROTOCOL."""
    with process.running(engine_of(request.module.PROTOCOL)) as made:
        yield made


@pytest.fixture
def scripted(under):
    """A script for threads A, B and C of that process."""
    with process.Threads(under) as script:
        yield script


@pytest.fixture
def threads(spf):
    """A script for threads A and B of the process."""
    with process.Threads(spf) as script:
        yield script
