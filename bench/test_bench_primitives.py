# SPDX-License-Identifier: MIT
"""Primitives of the native engine beside the same loops in C at -O2."""

import ctypes

import primitive_loops
import pytest
from support import note_ratio, ratio_in_turns, seconds

from spfemu.engines.source import functions_of
from spfemu.layout import PAGE_SIZE

COUNT = 1_000_000
LOOPS = sorted(functions_of(primitive_loops))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.benchmark(group="primitives")
def test_bench_primitive(benchmark, measure, primitives, c_loops, words, loop):
    native, in_c = primitives(loop), c_loops(loop)
    count = COUNT // 20 if loop == "loop_clear_page" else COUNT
    results = []
    for function in (native, in_c):
        ctypes.memset(words, 0, PAGE_SIZE)
        results.append(function(words, 1000))
    assert results[0] == results[1]

    median = measure(native, words, count)

    if median is not None:
        benchmark.extra_info["ns_per_turn"] = median / count * 1e9
        compared = ratio_in_turns(
            lambda: seconds(native, words, count), lambda: seconds(in_c, words, count)
        )
        note_ratio(benchmark, "ratio_to_c", compared)
