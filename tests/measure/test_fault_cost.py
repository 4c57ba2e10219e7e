# SPDX-License-Identifier: MIT
"""What a fault of page_fault1 does, primitive by primitive: it must not grow unnoticed.

Atomics and fences are what a fault waits for; stores and loads are counted because each new kind of
fault is asked for on the way.  Who has to raise a limit knows why.
"""

from collections import Counter

import pytest

from spfemu.engines.stepped import FiberState, StepEngine
from spfemu.engines.steps import Step
from spfemu.measure.build import compose
from spfemu.measure.shared_writes import AREA, FIXED, PAGES, READY_PAGES, RIGHTS
from spfemu.segment import Geometry, Segment

PAGE = 4096
LIMITS = {
    "bare": {Step.RMW: 0, Step.FENCE: 0, Step.STORE: 17, Step.LOAD: 34},
    "classic": {Step.RMW: 3, Step.FENCE: 0, Step.STORE: 32, Step.LOAD: 70},
    "spf": {Step.RMW: 1, Step.FENCE: 4, Step.STORE: 47, Step.LOAD: 96},
    "vma-lock": {Step.RMW: 3, Step.FENCE: 0, Step.STORE: 31, Step.LOAD: 80},
}


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_cpus=2))
    made.mms["mm_users"] = 2
    yield made
    made.close()


@pytest.mark.parametrize("protocol", LIMITS)
def test_a_first_write_takes_no_more_than_it_did(segment, protocol):
    engine = StepEngine(compose("page_fault1", protocol))
    cpu = segment.cpu(0)
    engine.call("cpu_online", cpu)
    engine.call("sys_mmap", cpu, AREA, PAGES * PAGE, RIGHTS, FIXED)
    for page in range(READY_PAGES):
        engine.call("user_write", cpu, AREA + page * PAGE, 1)

    counted = Counter()
    fiber = engine.spawn("user_write", cpu, AREA + READY_PAGES * PAGE, 1)
    while fiber.state is FiberState.READY:
        if fiber.event is not None:
            counted[fiber.event.kind] += 1
        fiber.resume()
    fiber.free()

    grown = {kind: counted[kind] for kind, most in LIMITS[protocol].items() if counted[kind] > most}
    assert grown == {}
