# SPDX-License-Identifier: MIT
"""Compiling the whole kernel, and loading it from the cache."""

import pytest

from spfemu.engines.native import NativeEngine
from spfemu.measure.build import compose

ROUNDS = 3


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.benchmark(group="compile")
def test_bench_compile(benchmark, tmp_path, monkeypatch, cache):
    program = compose("page_fault1", "spf")
    directories = (tmp_path / str(i) for i in range(ROUNDS + 1))
    monkeypatch.setenv("SPFEMU_CACHE_DIR", str(tmp_path))
    if cache == "warm":
        NativeEngine(program)

    def choose_cache():
        if cache == "cold":
            monkeypatch.setenv("SPFEMU_CACHE_DIR", str(next(directories)))

    made = benchmark.pedantic(NativeEngine, args=(program,), setup=choose_cache, rounds=ROUNDS)

    assert made.compiled.from_cache == (cache == "warm")
    benchmark.extra_info["functions"] = len(program.functions)
