# SPDX-License-Identifier: MIT
"""Fixtures of the emulated kernel's tests; see mm_machine.py."""

from collections.abc import Callable, Iterator, Mapping

import pytest
from mm_machine import Layer, Machine, MachineFactory, engine_of

from spfemu.engines.native import NativeEngine
from spfemu.segment import Geometry, Segment


@pytest.fixture(scope="session", autouse=True)
def own_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep compiled objects of the tests out of the user's cache, but from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        cache = request.config.cache
        assert cache is not None
        patch.setenv("SPFEMU_CACHE_DIR", str(cache.mkdir("objects")))
        yield


@pytest.fixture
def make_segment() -> Iterator[Callable[..., Segment]]:
    """Return a function that makes segments; its parameters are those of Geometry."""
    made: list[Segment] = []

    def make(**geometry: int) -> Segment:
        made.append(Segment.create(Geometry(**geometry)))
        return made[-1]

    yield make
    for segment in made:
        segment.close()


@pytest.fixture
def make_machine(make_segment: Callable[..., Segment]) -> MachineFactory:
    """Return a function that makes machines of the core modules with layers over them."""

    def make(*layers: Layer, config: Mapping[str, int] | None = None, **geometry: int) -> Machine:
        return Machine(engine_of(NativeEngine, *layers, config=config), make_segment(**geometry))

    return make
