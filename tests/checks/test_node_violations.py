# SPDX-License-Identifier: MIT
"""Free frames on another node's list, and what else is of a node, are reported."""

import pytest

from spfemu.checks import check_segment
from spfemu.layout import PAGE, PAGE_SIZE
from spfemu.mm.nodes import ZONE_FREE, ZONE_LIST
from spfemu.segment import Geometry, Segment

NR_FRAMES = 300


@pytest.fixture
def segment():
    """Two nodes of 150 frames: two chains each and some single ones."""
    made = Segment.create(Geometry(nr_cpus=2, nr_frames=NR_FRAMES, nr_nodes=2))
    assert check_segment(made) == []
    yield made
    made.close()


def test_a_frame_in_the_zone_of_another_node(segment):
    head = [int(segment.words[segment.zone_word(node, ZONE_LIST)]) for node in (0, 1)]
    for node in (0, 1):
        segment.words[segment.zone_word(node, ZONE_LIST)] = head[1 - node]
    for node, change in ((0, 2), (1, -2)):  # node 0 has two reserved frames
        segment.words[segment.zone_word(node, ZONE_FREE)] += change
    found = check_segment(segment)
    assert len(found) == 16 + 2 - 2
    assert all("of node 1 is in the zone" in message for message in found[:8])
    assert all("of node 0 is in the zone of node 1" in message for message in found[8:])


def test_a_frame_on_the_list_of_a_cpu_of_another_node(segment):
    head = int(segment.words[segment.zone_word(0, ZONE_LIST)])
    page = (head - segment.address["vmemmap"]) // PAGE.SIZE
    segment.words[segment.zone_word(0, ZONE_LIST)] = segment.pages["lru"][page]
    segment.words[segment.zone_word(0, ZONE_FREE)] -= 1
    segment.pages["lru"][page] = 0
    segment.cpus["pcp_list"][1], segment.cpus["pcp_count"][1] = head, 1
    at = segment.address["frames"] + page * PAGE_SIZE
    assert check_segment(segment) == [f"frame {page} at {at:#x} of node 0 is in pcp_list of CPU 1"]


def test_a_count_of_free_frames(segment):
    segment.words[segment.zone_word(1, ZONE_FREE)] += 1
    assert check_segment(segment) == ["the zone of node 1 holds 150 frames, but counts 151"]


def test_the_lock_of_a_zone(segment):
    segment.words[segment.zone_word(1, 0)] = 2
    assert check_segment(segment) == ["zone_lock of node 1 is held by CPU 1"]
