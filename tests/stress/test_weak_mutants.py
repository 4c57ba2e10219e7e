# SPDX-License-Identifier: MIT
"""Mutants that only a weak memory shows: their schedules do, and the memory of x86 does not.

With SPFEMU_ALL_MUTANTS=1 all of them; else some of each kind.
"""

import os

import pytest

from spfemu.engines.script import Memory
from spfemu.engines.stepped import StepEngine
from spfemu.stress.matrix import by_stress
from spfemu.stress.mutant import mutants
from spfemu.stress.schedules import schedules
from spfemu.stress.schedules.process import program
from spfemu.stress.schedules.schedule import play
from spfemu.stress.schedules.weak_memory import WeakThreads

ALL = bool(os.environ.get("SPFEMU_ALL_MUTANTS"))
WEAK = [m for m in mutants().values() if m.weak_memory]
KILLED = [m for m in WEAK if m.schedule is not None]
FAST = ("enter_without_wmb", "start_without_rmb", "vmas_unlocked_without_release")
"""A store that is late, a load that is early, and one under a lock."""


@pytest.fixture(params=[m for m in KILLED if ALL or m.name in FAST], ids=lambda m: m.name)
def broken(request):
    """A mutant's schedule, and the kernel with the mutant."""
    mutant = request.param
    one = schedules()[mutant.schedule]
    config = {**one.config, **mutant.config}
    return one, StepEngine(program(mutant.protocol, (mutant.path,), **config))


def test_it_dies_under_a_weak_memory_only(broken, monkeypatch):
    assert play(*broken, 0.0)[0] is not None
    for memory in (Memory.TSO, Memory.SC):
        monkeypatch.setattr(WeakThreads, "MEMORY", memory)
        monkeypatch.setattr(WeakThreads, "cpu", _in_order(memory))
        assert play(*broken, 0.0)[0] is None, memory


def _in_order(memory):
    """Let scripts whose memory is in order hold nothing back."""
    make = WeakThreads.cpu

    def cpu(script, *arguments):
        made = make(script, *arguments)
        if memory is Memory.SC:
            made.holds_back = made.reads_early = lambda *_addresses: made
        return made

    return cpu


def test_all_are_there():
    assert {m.id for m in WEAK} >= {"M15", "M16", "M27"}
    assert len(KILLED) >= 12
    assert len({m.protocol for m in WEAK}) >= 5


def test_real_processes_are_not_asked():
    assert by_stress(KILLED[0], 1.0) is None
