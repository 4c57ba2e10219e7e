# SPDX-License-Identifier: MIT
"""Calls and faults that meet in random orders while some allocation of one of them fails."""

import os
import random

import fault_injection
import pytest
from fault_injection import Inject

from spfemu.checks import check_segment
from spfemu.engines.source import functions_of
from spfemu.engines.stepped import StepEngine
from spfemu.mm.flags import Errno, Madv, Map, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads, program

AREA = 1 << 40
PAGE = AREA + 4096
SHARED = int(Map.SHARED | Map.ANONYMOUS | Map.FIXED)
LEGAL = (0, -Errno.EFAULT, -Errno.ENOMEM, -Errno.EAGAIN, AREA)
CALLS = (
    ("write", AREA, 1),
    ("write", PAGE, 2),
    ("write", AREA + (3 << 12), 3),
    ("read", PAGE),
    ("read", AREA + (2 << 12)),
    ("munmap", PAGE, 4096),
    ("mprotect", PAGE, 8192, int(Prot.READ)),
    ("dontneed", AREA, 8192),
    ("advise", AREA, 4 << 12, int(Madv.PAGEOUT)),
    ("mmap", AREA, 2 << 12, RW, FIXED),
    ("mmap", AREA, 2 << 12, RW, SHARED),
    ("fork",),
)
SEEDS = 400 if os.environ.get("SPFEMU_TEST_ALL") else 60


@pytest.mark.parametrize("protocol", ["spf", "spf-vma", "vma-lock", "vma-refcount"])
def test_invariants_hold_whatever_fails_in_whatever_order(own_cache, protocol):
    engine = StepEngine(program(protocol, wrapper=functions_of(fault_injection)))
    process = Process(engine, Segment.create(Geometry(nr_cpus=3, nr_spare_mms=3, nr_swap=16)))
    scratch = process.segment.scratch(0) - process.segment.base
    words = process.segment.words[scratch // 8 :]
    failed = 0
    for seed in range(SEEDS):
        chance = random.Random(seed)
        process.begin(seed)
        process.map(AREA, 4)
        for page in chance.sample(range(4), chance.randrange(4)):
            process.write(AREA + (page << 12), 7)
        words[Inject.COUNTDOWN] = chance.randrange(1, 12)
        words[Inject.TIMES] = chance.choice([1, 2, 100])
        calls = [(name, *chance.choice(CALLS)) for name in "ABC"]
        with Threads(process) as threads:
            cpus = [threads.thread(*call) for call in calls]
            schedule = threads.runs_randomly(seed)
            results = [cpu.result for cpu in cpus]
        words[Inject.TIMES] = 0
        failed += bool(words[Inject.FAILED])
        what = seed, calls, results, schedule
        assert check_segment(process.segment) == [], what
        for (_, function, *_), result in zip(calls, results, strict=True):
            error = result[0] if isinstance(result, tuple) else result
            assert error in LEGAL or (function == "fork" and error > 0), what
        process.write(process.map(AREA, 4), 1)
    assert failed > SEEDS // 4
    process.segment.close()
