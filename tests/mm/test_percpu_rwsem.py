# SPDX-License-Identifier: MIT
"""The per-CPU rwsem, call by call; its races are scripted in tests/protocols."""

from importlib import import_module

import pytest
from mm_machine import Machine, engine_of

from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of
from spfemu.layout import CPU, MM, PERCPU_RWSEM, WORD
from spfemu.segment import Geometry, Segment


@pytest.fixture
def machine():
    module = functions_of(import_module("spfemu.mm.percpu_rwsem"))
    segment = Segment.create(Geometry(nr_cpus=2))
    yield Machine(engine_of(NativeEngine, module), segment)
    assert not segment.cpus["percpu_read"].any()
    segment.close()


@pytest.fixture
def sem(machine):
    return machine.segment.mm(0) + MM.mmu_notifier_lock


def test_without_writers_a_reader_writes_to_its_own_block_only(machine, sem):
    segment, cpu = machine.segment, machine.cpu(0)
    before = segment.words.copy()
    assert machine.call("percpu_down_read_trylock", cpu, sem) == 1
    (changed,) = (segment.words != before).nonzero()
    assert [segment.base + WORD * int(i) for i in changed] == [cpu + CPU.percpu_read]
    machine.call("percpu_up_read", cpu, sem)
    assert (segment.words == before).all()


def test_a_writer_that_has_only_announced_itself_keeps_nobody_out(machine, sem):
    machine.call("rcu_sync_enter", machine.cpu(0), sem)
    assert machine.call("percpu_down_read_trylock", machine.cpu(1), sem) == 1
    machine.call("percpu_up_read", machine.cpu(1), sem)
    machine.call("rcu_sync_exit", sem)


def test_a_writer_keeps_readers_out_until_it_has_left(machine, sem):
    machine.call("rcu_sync_enter", machine.cpu(0), sem)
    machine.call("percpu_down_write", machine.cpu(0), sem)
    assert machine.call("percpu_down_read_trylock", machine.cpu(1), sem) == 0
    machine.call("percpu_up_write", machine.cpu(0), sem)
    machine.call("rcu_sync_exit", sem)
    assert machine.segment.word(sem + PERCPU_RWSEM.rss) == 0
    assert machine.call("percpu_down_read_trylock", machine.cpu(1), sem) == 1
    machine.call("percpu_up_read", machine.cpu(1), sem)
