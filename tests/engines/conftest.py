# SPDX-License-Identifier: MIT
"""What the engines' tests share: the toy kernel, linked, and a small segment."""

import pytest
import toys

from spfemu.engines.source import Program, functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.mm import bug, irq, spinlock, vmstat
from spfemu.segment import Geometry, Segment


@pytest.fixture(scope="session", autouse=True)
def own_cache(request):
    """Keep compiled objects of the tests out of the user's cache, but from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPFEMU_CACHE_DIR", str(request.config.cache.mkdir("objects")))
        yield


@pytest.fixture(scope="session")
def toy_program() -> Program:
    """The toys over the spinlocks and interrupts of the emulated kernel."""
    return link([functions_of(m) for m in (bug, vmstat, irq, spinlock, toys)], {})


@pytest.fixture(scope="session")
def stepped(own_cache, toy_program) -> StepEngine:
    """The toys on the stepped engine."""
    return StepEngine(toy_program)


@pytest.fixture
def segment():
    """A segment of two CPUs in its initial state."""
    made = Segment.create(Geometry(nr_cpus=2))
    yield made
    made.close()
