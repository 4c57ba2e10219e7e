# SPDX-License-Identifier: MIT
"""The checks accept good segments, and survive any corruption."""

import random

import numpy as np
import pytest
from good_segment import GoodSegment, area

from spfemu.checks import check_segment
from spfemu.engines.style import INT64_MAX, INT64_MIN
from spfemu.layout import PAGE_SIZE, VMA, WORD
from spfemu.mm.flags import PTRS_PER_TABLE
from spfemu.segment import Geometry, Segment


def test_initial_segment() -> None:
    segment = Segment.create(Geometry(nr_cpus=3, nr_mms=2, nr_frames=300))
    assert check_segment(segment) == []
    segment.close()


def test_good_segment(good: GoodSegment) -> None:
    assert check_segment(good.segment) == []


def test_good_segment_has_something_of_everything(good: GoodSegment) -> None:
    """What the corruptions need, and what makes an empty report worth something."""
    segment = good.segment
    assert segment.cpus["pcp_spare_count"][0] > 0
    assert segment.system["zone_chains"] != 0
    assert segment.system["zone_list"] != 0
    assert segment.cpus["rcu"][1].any()
    assert (segment.cpus["tlb_gen"] == segment.mms["tlb_gen"][[0, 0, 1]]).all()
    assert segment.cpus["vmacache"].any(axis=1).all()
    assert segment.mms["mmap_seq"].all()
    assert set(segment.vmas["rb_color"][segment.vmas["slab_state"] == 1].tolist()) == {0, 1}


def test_many_of_one_kind_are_counted(good: GoodSegment) -> None:
    """A corruption that hits everything is still a report that can be read."""
    good.segment.pages["refcount"] += 1
    messages = check_segment(good.segment)
    assert len(messages) == 8
    assert messages[-1].endswith(f"(and {len(good.segment.pages) - 8} more like this)")


@pytest.mark.parametrize("seed", range(8))
def test_any_corruption_is_survived(good: GoodSegment, seed: int) -> None:
    """Random words anywhere but in the frames' data: the check ends, and finds nearly all."""
    rng = random.Random(seed)
    segment = good.segment
    tables = np.flatnonzero(segment.pages["flags"] == 2).tolist()
    frames = (segment.address["frames"] - segment.base) // WORD
    for _ in range(25):
        for _ in range(rng.choice([1, 1, 3, 30])):
            if rng.random() < 0.3:
                where = frames + rng.choice(tables) * PTRS_PER_TABLE + rng.randrange(512)
            else:
                where = rng.randrange(PAGE_SIZE // WORD, frames)
            segment.words[where] = _garbage(rng, segment)
        for message in check_segment(segment):
            assert isinstance(message, str)
            assert message
        good.restore()


def _garbage(rng: random.Random, segment: Segment) -> int:
    """A word that may be anything, preferably an address of something else."""
    inside = segment.base + rng.randrange(segment.size)
    vma = segment.address["vmas"] + rng.randrange(len(segment.vmas)) * VMA.SIZE
    anything = rng.randrange(INT64_MIN, INT64_MAX)
    return rng.choice(
        [0, 1, -1, INT64_MIN, INT64_MAX, inside, inside & -64, vma, area(3), anything]
    )


def test_broken_header_area_is_survived(good: GoodSegment) -> None:
    """The machine's global words, each in turn as an address astray."""
    segment = good.segment
    start = segment.address["system"]
    for name in ("zone_chains", "zone_list", "vma_free", "anon_vma_free", "zone_lock"):
        segment.system[name] = start + 1
        assert check_segment(segment), name
        good.restore()
