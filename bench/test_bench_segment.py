# SPDX-License-Identifier: MIT
"""Set-up of a segment: mapped, populated, initialised."""

import pytest
from support import ROUNDS, WARMUP_ROUNDS

from spfemu.layout import PAGE_SIZE
from spfemu.segment import Geometry, Segment


@pytest.mark.parametrize("mib", [1, 16, 128])
@pytest.mark.benchmark(group="segment")
def test_bench_create(benchmark, mib):
    geometry = Geometry(nr_cpus=2, nr_frames=(mib << 20) // PAGE_SIZE)
    made = []

    def create():
        made.append(Segment.create(geometry))

    def close():
        for segment in made:
            segment.close()
        made.clear()

    benchmark.pedantic(create, teardown=close, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)

    benchmark.extra_info["segment_bytes"] = geometry.size
    benchmark.extra_info["overhead"] = geometry.size / (geometry.nr_frames * PAGE_SIZE) - 1
    if benchmark.enabled:
        benchmark.extra_info["gib_per_second"] = (
            geometry.size / benchmark.stats.stats.median / (1 << 30)
        )
