# SPDX-License-Identifier: MIT
"""What a fault's lookup finds while a writer rotates the tree of VMAs, walked and latched."""

import pytest

from spfemu.engines.script import after, before
from spfemu.engines.stepped import StepEngine
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Threads, program, running

AREAS = tuple((1 << 40) + (i << 30) for i in range(3))
ROTATING = before("rb_change_child", inside="rb_rotate")
"""The second area hangs below the first no more, and the root is not the second yet."""


@pytest.fixture(scope="module", params=["spf", "spf-counted", "spf-vma", "vma-lock"])
def protocol(request):
    return request.param


@pytest.fixture(scope="module", params=[0, 1], ids=["walk", "latch"])
def engine(own_cache, protocol, request):
    return StepEngine(program(protocol, CONFIG_VMA_LATCH=request.param))


@pytest.fixture
def faulting(engine):
    """A process with two areas, A about to write to the second, B about to map a third."""
    with running(engine) as process:
        for area in AREAS[:2]:
            process.map(area, 4)
            process.write(area, 1)
        with Threads(process) as threads:
            a = threads.thread("A", "write", AREAS[1] + 4096, 7)
            b = threads.thread("B", "mmap", AREAS[2], 4096, RW, 0x32)
            yield process, a, b
        assert process.read(AREAS[1] + 4096) == 7


def latched(engine) -> bool:
    return bool(engine.program.config["CONFIG_VMA_LATCH"])


def test_a_rotation_hides_vmas_from_a_walk_only(faulting, engine, protocol):
    """A has looked at the count before B entered; what it finds is another matter."""
    process, a, b = faulting
    starts = {"spf-vma": "rcu_read_lock", "vma-lock": "rcu_read_lock"}
    a.runs_until(after(starts.get(protocol, "mmap_seq_read_start")))
    b.runs_until(ROTATING)
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end(letting=[a])
    if protocol == "vma-lock":
        # the writer has not locked the VMA in which A faults
        expected = {"SUCCESS": 1} if latched(engine) else {"ABORT_UNMAPPED": 1}
        assert process.vma_lock() == expected
        return
    found = process.aborts()
    if protocol == "spf-vma":
        # the count of the tree makes it look again; that of the VMA never moves
        assert "UNMAPPED" not in found
    else:
        assert found == ({"VMA_COPY": 1} if latched(engine) else {"UNMAPPED": 1})
