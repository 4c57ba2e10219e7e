# SPDX-License-Identifier: MIT
"""Lookup of a VMA against their number, and unmapping against size."""

import pytest
from support import AREA

from spfemu.layout import PAGE_SIZE

LOOKUPS = 200_000
STEP = 0x9E3779B5
"""Odd, and far from a power of two: the lookups go through all VMAs, seldom to one nearby."""


@pytest.mark.parametrize("vmas", [1, 16, 256, 4096, 32768])
@pytest.mark.benchmark(group="find_vma")
def test_bench_find_vma(benchmark, measure, machine, vmas):
    under_test = machine(vmas=vmas + 64)
    under_test.checked("map_apart", AREA, vmas)

    median = measure(under_test.checked, "loop_find_vma", AREA, vmas, STEP, LOOKUPS)

    if median is not None:
        benchmark.extra_info["vmas"] = vmas
        benchmark.extra_info["ns_per_lookup"] = median / LOOKUPS * 1e9


@pytest.mark.parametrize("kib", [4, 64, 1024, 16384])
@pytest.mark.benchmark(group="munmap")
def test_bench_munmap(benchmark, measure, machine, kib):
    length = kib << 10
    under_test = machine(frames=2 * (length // PAGE_SIZE) + 128)

    def touch():
        under_test.checked("map_afresh", AREA, length)
        under_test.checked("loop_write_pages", AREA, AREA + length)

    median = measure(under_test.checked, "unmap", AREA, length, setup=touch)

    if median is not None:
        benchmark.extra_info["kib"] = kib
        benchmark.extra_info["ns_per_page"] = median / (length // PAGE_SIZE) * 1e9
