# SPDX-License-Identifier: MIT
"""Names of addresses: every area of a segment has some."""

from spfemu.engines.symbols import symbol
from spfemu.segment import Geometry, Segment


def test_every_area_is_named():
    geometry = Geometry(
        nr_cpus=1,
        nr_frames=1024 + 512,
        nr_trace_words=8,
        nr_model_words=8,
        nr_swap=16,
        nr_huge=1,
        stress=1,
    )
    segment = Segment.create(geometry)
    names = {
        area: symbol(segment, segment.base + start)
        for area, (start, size) in geometry.areas().items()
        if size
    }
    segment.close()

    assert set(names) == set(geometry.areas())
    assert all(names.values()), names
    assert len(set(names.values())) == len(names)
    assert names["model"] == "model[0]"
