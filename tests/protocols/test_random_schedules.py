# SPDX-License-Identifier: MIT
"""Faults against unmapping, dropping and protecting in random orders: all invariants hold."""

import pytest
from mutants import mutant_engine

from spfemu.checks import check_segment
from spfemu.mm.flags import Errno, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
PAGE = AREA + 4096
SEEDS = range(16)
EFAULT = int(Errno.EFAULT)
CALLS = {
    "write and remap": [
        ("A", "write", PAGE, 7),
        ("B", "remap", PAGE, 4096),
        ("C", "write", PAGE + 4096, 8),
    ],
    "write and unmap all": [
        ("A", "write", PAGE, 7),
        ("B", "munmap", AREA, 4 << 12),
        ("C", "read", PAGE),
    ],
    "write and drop": [
        ("A", "write", PAGE, 7),
        ("B", "dontneed", AREA, 4 << 12),
        ("C", "write", PAGE, 7),
    ],
    "write and protect": [
        ("A", "write", PAGE, 7),
        ("B", "mprotect", PAGE, 8 << 10, int(Prot.READ)),
        ("C", "read", PAGE),
    ],
}


def outcome(process, calls, seed, prepared):
    """Run calls in the order of a seed; returns results, violations and the schedule."""
    process.begin(seed)
    process.map(AREA, 4)
    if prepared == "written":
        process.write(AREA, 1)
    elif prepared == "zero page":
        process.read(PAGE)
    with Threads(process) as threads:
        cpus = [threads.thread(*call) for call in calls]
        schedule = threads.runs_randomly(seed)
        results = [cpu.result for cpu in cpus]
    return results, check_segment(process.segment), schedule


@pytest.mark.parametrize("prepared", ["fresh", "written", "zero page"])
@pytest.mark.parametrize("name", CALLS)
def test_invariants_hold_in_random_orders(spf, name, prepared):
    for seed in SEEDS:
        results, violations, schedule = outcome(spf, CALLS[name], seed, prepared)
        assert violations == [], (seed, schedule)
        assert results[0] in (0, -EFAULT), (seed, schedule)
        if name == "write and remap":
            assert results[1] in ((0, 0), (0, 7)), (seed, schedule)
    spf.begin()


def test_random_orders_find_a_missing_check(own_cache):
    engine = mutant_engine("spf", "no_seq2")
    broken = Process(engine, Segment.create(Geometry(nr_cpus=3)))
    calls = CALLS["write and unmap all"]

    found = next(seed for seed in range(2000) if outcome(broken, calls, seed, "written")[1])

    # the same seed breaks it again, in the same way
    assert outcome(broken, calls, found, "written") == outcome(broken, calls, found, "written")
    broken.segment.close()
