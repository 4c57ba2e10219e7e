# SPDX-License-Identifier: MIT
"""Faults that wait for a page lock do so without the lock by which they found their VMA.

A brings a page back from the swap area; B comes to the same page meanwhile.
"""

import pytest
from protocol_sets import GUARDED

from spfemu.checks import check_segment
from spfemu.engines.script import after, waits
from spfemu.mm.flags import Madv
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
PAGE = AREA + 4096


@pytest.fixture(params=GUARDED)
def swapped(engine_of, request):
    """A process with a page that is in the swap area."""
    segment = Segment.create(Geometry(nr_cpus=3, nr_frames=600, nr_swap=200))
    process = Process(engine_of(request.param), segment)
    process.protocol = request.param
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.write(PAGE, 2)
    engine, cpu = process.engine, segment.cpu(2)
    engine.call("cpu_idle_exit", cpu)
    assert engine.call("sys_madvise", cpu, PAGE, 4096, Madv.PAGEOUT) == 0
    engine.call("cpu_idle_enter", cpu)
    yield process
    assert check_segment(segment) == []
    segment.close()


def test_who_waits_for_the_page_holds_no_vma(swapped):
    with Threads(swapped) as threads:
        a = threads.thread("A", "write", PAGE + 8, 7)
        b = threads.thread("B", "read", PAGE)
        a.runs_until(after("lock_page_or_retry"))
        b.runs_until(waits())
        vmas = swapped.segment.vmas
        if swapped.protocol == "vma-refcount":
            # the tree's reference and A's
            assert sorted(vmas["vm_refcnt"][vmas["slab_state"] == 1]) == [2]
            assert "FAULT_CLASSIC" not in swapped.events(1)
        elif swapped.protocol != "vma-lock":
            assert swapped.segment.cpus["mmap_lock_held"][1] == 0
        assert a.runs_to_end(letting=[b]) == 0
        assert b.runs_to_end() == (0, 2)
    if swapped.protocol == "vma-refcount":
        assert swapped.vma_lock(1) == {"RETRY": 1}
    assert (swapped.read(PAGE), swapped.read(PAGE + 8)) == (2, 7)
