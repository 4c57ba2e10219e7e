# SPDX-License-Identifier: MIT
"""Random orders of faults and calls under a weak memory: no barrier is missing in any protocol."""

import pytest
from test_random_schedules import AREA, CALLS, EFAULT, PAGE

from spfemu.checks import check_segment
from spfemu.engines.script import Memory
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Threads, running

MORE_CALLS = {
    "write and fork": [
        ("A", "write", PAGE, 7),
        ("B", "fork"),
        ("C", "write", AREA, 8),
    ],
    "write and map": [
        ("A", "write", PAGE, 7),
        ("B", "mmap", AREA + (4 << 12), 4096, RW, FIXED),
        ("C", "munmap", AREA + (3 << 12), 4096),
    ],
}
SEEDS = range(2)
PROTOCOLS = ("classic", "spf", "spf-vma", "vma-lock", "vma-refcount")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_invariants_hold(engine_of, protocol):
    with running(engine_of(protocol)) as process:
        for name, calls in (CALLS | MORE_CALLS).items():
            for seed in SEEDS:
                result, schedule = outcome(process, calls, seed)
                assert check_segment(process.segment) == [], (name, seed, schedule)
                assert result in (0, -EFAULT), (name, seed, schedule)


def outcome(process, calls, seed):
    """Run calls in the order of a seed; returns the first one's result, and the schedule."""
    process.begin(seed)
    process.map(AREA, 4)
    if seed % 2:
        process.write(AREA, 1)
        process.write(PAGE, 1)
    with Threads(process, memory=Memory.WEAK) as threads:
        cpus = [threads.thread(*call) for call in calls]
        schedule = threads.runs_randomly(seed)
        return cpus[0].result, schedule
