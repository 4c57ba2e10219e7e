# SPDX-License-Identifier: MIT
"""What the last check of the commit gate is for, shown on the stepped engine."""

from pathlib import Path

from spfemu.checks import check_segment
from spfemu.engines.script import Script, after, before
from spfemu.engines.stepped import StepEngine
from spfemu.layout import PAGE_SIZE
from spfemu.measure.build import compose
from spfemu.mm.flags import Errno, Map, Prot
from spfemu.segment import Geometry, Segment

OVERRIDE = str(Path(__file__).with_name("no_seq2.py"))
LENGTH = 2 * PAGE_SIZE
READ_WRITE = Prot.READ | Prot.WRITE
ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS


def write_beside_munmap(overrides):
    """CPU A writes to a new page while CPU B unmaps it; returns A's result and the violations."""
    config = {"CONFIG_DEBUG_VM": 1}
    engine = StepEngine(compose("page_fault1", "spf", config=config, overrides=overrides))
    segment = Segment.create(Geometry(nr_cpus=2, nr_frames=256))
    segment.mms["mm_users"] = 2
    a, b = segment.cpu(0), segment.cpu(1)
    for cpu in (a, b):
        engine.call("cpu_online", cpu)
    area = engine.call("sys_mmap", a, 0, LENGTH, READ_WRITE, ANONYMOUS)
    engine.call("user_write", a, area, 1)  # now the page table and the anon_vma are there

    with Script(engine, segment) as script:
        writes = script.cpu("A", "user_write", a, area + PAGE_SIZE, 2)
        unmaps = script.cpu("B", "sys_munmap", b, area, LENGTH)
        writes.runs_until(after("mmap_seq_read_check", inside="pte_map_lock_speculative"))
        unmaps.runs_until(before("free_pgtables"))
        result = writes.runs_to_end()
        engine.call("cpu_offline", a)  # or B would wait for it to take the IPI
        unmaps.runs_to_end()
    engine.call("cpu_offline", b)
    violations = check_segment(segment)
    segment.close()
    return result, violations


def test_with_the_check_the_write_fails_as_it_must():
    result, violations = write_beside_munmap([])

    assert result == -Errno.EFAULT
    assert violations == []


def test_without_it_the_write_succeeds_and_a_frame_is_lost():
    result, violations = write_beside_munmap([OVERRIDE])

    assert result == 0
    assert any("frame" in violation for violation in violations), violations
