# SPDX-License-Identifier: MIT
"""What holds under every protocol: results are those of `classic`, and the invariants hold."""

import functools
import random
import re
from pathlib import Path

import pytest
from protocol_sets import GUARDED
from test_random_schedules import CALLS, EFAULT, outcome

from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.events import VMA_LOCK_ABORT_REASONS
from spfemu.measure import run
from spfemu.measure.plan import Plan
from spfemu.mm.flags import PMD_SIZE, Prot, Vm
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads, program

NEW = sorted(set(GUARDED) - {"classic", "spf"})
"""Those that test_random_schedules.py does not try already."""
PROGRAMS = 24
CALLS_OF_A_PROGRAM = 150
SEEDS = range(12)
FIRST = (1 << 40) + PMD_SIZE - (16 << 12)
"""The area lies across two page tables."""
PAGES = 32


@functools.cache
def native(protocol):
    return NativeEngine(program(protocol))


def do_random_calls(process, seed):
    """Make a program's calls; returns their results, the map and the data at the end."""
    choose = random.Random(seed)
    results = []
    for _ in range(CALLS_OF_A_PROGRAM):
        first, last = sorted(choose.sample(range(PAGES + 1), 2))
        address, length = FIRST + (first << 12), (last - first) << 12
        name = choose.choice(["write"] * 6 + ["read"] * 4 + ["mmap", "munmap", "mprotect"] * 2
                             + ["dontneed"])  # fmt: skip
        arguments = {
            "write": (address, choose.getrandbits(60)),
            "read": (address,),
            "mmap": (address, length, choose.choice([RW, RW, int(Prot.READ)]), FIXED),
            "munmap": (address, length),
            "mprotect": (address, length, choose.choice([RW, int(Prot.READ), 0])),
            "dontneed": (address, length),
        }[name]
        results.append(process.call(name, *arguments, cpu=choose.randrange(3)))
    vmas = process.segment.vmas
    maps = sorted(
        (int(v["vm_start"]), int(v["vm_end"]), int(v["vm_flags"]))
        for v in vmas[vmas["slab_state"] == 1]
    )
    for start, end, flags in maps:
        if flags & Vm.READ:
            results += [process.read(a) for a in range(start, end, 4096)]
    return results, maps


@pytest.mark.parametrize("protocol", sorted(set(GUARDED) - {"classic"}))
def test_programs_do_what_they_do_under_classic(own_cache, protocol):
    """Who tries without the mmap lock gets nothing that the locked path would not give."""
    segment = Segment.create(Geometry(nr_cpus=3))
    for seed in range(PROGRAMS):
        found = []
        for name in ("classic", protocol):
            process = Process(native(name), segment)
            found.append(do_random_calls(process, seed))
            assert check_segment(segment) == [], (name, seed)
        assert found[0] == found[1], seed
    segment.close()


@pytest.mark.parametrize("prepared", ["fresh", "written", "zero page"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", NEW)
def test_invariants_hold_in_random_orders(engine_of, protocol, name, prepared):
    segment = Segment.create(Geometry(nr_cpus=3))
    process = Process(engine_of(protocol), segment)
    for seed in SEEDS:
        results, violations, schedule = outcome(process, CALLS[name], seed, prepared)
        assert violations == [], (seed, schedule)
        assert results[0] in (0, -EFAULT), (seed, schedule)
        if name == "write and remap":
            assert results[1] in ((0, 0), (0, 7)), (seed, schedule)
    segment.close()


REARRANGE = [
    ("A", "write", FIRST, 7),
    ("B", "mprotect", FIRST + (4 << 12), 8 << 12, int(Prot.READ)),
    ("C", "mprotect", FIRST, 16 << 12, RW),
]


@pytest.mark.parametrize("protocol", GUARDED)
def test_a_fault_beside_splits_and_merges(engine_of, protocol):
    segment = Segment.create(Geometry(nr_cpus=3))
    process = Process(engine_of(protocol), segment)
    for seed in range(2 * len(SEEDS)):
        process.begin(seed)
        process.map(FIRST, 16)
        process.write(FIRST + 4096, 1)
        with Threads(process) as threads:
            cpus = [threads.thread(*call) for call in REARRANGE]
            schedule = threads.runs_randomly(seed)
            assert [cpu.result for cpu in cpus] == [0, 0, 0], (seed, schedule)
        assert check_segment(segment) == [], (seed, schedule)
        assert process.read(FIRST) == 7
    segment.close()


@pytest.mark.parametrize("overlap", [False, True], ids=["apart", "overlapping"])
@pytest.mark.parametrize("protocol", GUARDED)
def test_two_workers_beside_a_writer(own_cache, protocol, overlap):
    plan = Plan(
        "mixed", protocol=protocol, workers=2, writers=1, overlap=overlap,
        seconds=0.1, warmup=0.01, repeats=1, seed=3,
    )  # fmt: skip
    found = run.measure(plan)
    assert found.violations == []
    assert found.events["PGFAULT"] > 0
    assert found.events["CALL_MUNMAP"] > 0


def test_every_reason_of_a_vma_lock_is_explained():
    page = Path(__file__).parents[2] / "docs" / "protocols.md"
    table = page.read_text(encoding="utf-8").split("<!-- vma-lock-aborts -->")[1].split("<!--")[0]
    named = re.findall(r"^\| `(\w+)` ", table, re.MULTILINE)
    assert [f"VMA_LOCK_ABORT_{name}" for name in named] == [e.name for e in VMA_LOCK_ABORT_REASONS]
