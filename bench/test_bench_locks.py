# SPDX-License-Identifier: MIT
"""Locks that nobody else wants: taken and released by one CPU."""

import pytest

from spfemu.events import Event

COUNT = 500_000


@pytest.mark.parametrize("lock", ["spin_lock", "mmap_read_lock", "mmap_write_lock", "mmap_seq"])
@pytest.mark.benchmark(group="locks")
def test_bench_lock(benchmark, measure, machine, lock):
    under_test = machine()

    median = measure(under_test.call, f"loop_{lock}", COUNT)

    # a contended lock would have been another bench
    for event in (Event.SPIN_CONTENDED, Event.RWSEM_READ_SLOW, Event.RWSEM_WRITE_SLOW):
        assert under_test.event(event) == 0
    if median is not None:
        benchmark.extra_info["ns_per_pair"] = median / COUNT * 1e9
