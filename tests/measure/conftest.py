# SPDX-License-Identifier: MIT
"""What tests of measuring share: short plans, and no process may be left behind."""

import psutil
import pytest

from spfemu.measure.plan import Plan
from spfemu.measure.probe import Probe

QUICK = {"seconds": 0.05, "warmup": 0.01, "repeats": 1, "seed": 7}


@pytest.fixture(autouse=True)
def no_process_left():
    """Fail a test that leaves a child behind."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, f"left behind: {left}"


@pytest.fixture
def quick():
    """Make a plan of one short sample."""

    def make(workload="mmap1", **given):
        return Plan(workload, **{**QUICK, **given})

    return make


@pytest.fixture
def override(tmp_path):
    """Write an override file of kernel functions and return its path as plans take it."""

    def write(body):
        path = tmp_path / "override.py"
        path.write_text(
            "from spfemu.kernel import kernel\n"
            "from spfemu.layout import CPU, MM, SYSTEM\n"
            "from spfemu.mm.mmap_lock import mmap_write_lock\n"
            "from spfemu.mm.spinlock import spin_lock\n"
            "from spfemu.primitives import (\n"
            "    atomic_fetch_add, cpu_relax, load, panic, raw_syscall, store,\n"
            ")\n" + body
        )
        return (str(path),)

    return write


class FakeProber:
    """Gives the probes of a list, then the last one for ever."""

    def __init__(self, *line_ns):
        self.line_ns = list(line_ns)

    def probe(self):
        line = self.line_ns.pop(0) if len(self.line_ns) > 1 else self.line_ns[0]
        return Probe(line, 3.0)


@pytest.fixture
def fake_prober():
    """Make a prober that sees what it is told."""
    return FakeProber
