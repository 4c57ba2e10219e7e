# SPDX-License-Identifier: MIT
"""What reports say of a broken promise names CPUs, objects and times."""

import pytest

from spfemu.layout import SHADOW
from spfemu.segment import Geometry, Segment
from spfemu.stress.details import describe
from spfemu.stress.promises import Promise


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_cpus=2, stress=1))
    yield made
    made.close()


def test_who_freed_it_and_when(segment):
    shadow = int(segment.stress[0]["frame_shadow"]) + 5 * SHADOW.SIZE
    at = (shadow - segment.base) // 8
    words = segment.words[at : at + SHADOW.SIZE // 8].view(SHADOW.dtype)[0]
    words["freed_by"], words["time"] = segment.cpu(1), 1000
    segment.stress["time"] = 3500

    text = describe(segment, Promise.USE_AFTER_FREE, segment.address["frames"] + 5 * 4096, shadow)

    assert text == "touched frame[5], which CPU 1 had freed 2,500 cycles before"


@pytest.mark.parametrize("promise", sorted(set(Promise) - {Promise.LOCK_ORDER}))
def test_every_promise_has_words(segment, promise):
    shadow = int(segment.stress[0]["frame_shadow"])
    b = shadow if promise is Promise.USE_AFTER_FREE else 1

    assert describe(segment, promise, segment.mm(0), b)
