# SPDX-License-Identifier: MIT
"""The page lock: one holder at a time, and nobody who waits for it is forgotten."""

import sys

import pytest
from mm_machine import Machine, MachineFactory

from spfemu.engines.source import functions_of
from spfemu.kernel import kernel
from spfemu.layout import PAGE
from spfemu.mm import page_lock
from spfemu.mm.flags import PageKind, Pg
from spfemu.mm.page_lock import lock_page, trylock_page, unlock_page
from spfemu.primitives import load, store

NR_CPUS = 3
ROUNDS = 20_000
ANON = int(PageKind.ANON)


@kernel
def count_locked(cpu: int, page: int, word: int, rounds: int) -> int:
    """Count a plain word up under the page's lock."""
    for _ in range(rounds):
        lock_page(cpu, page)
        store(word, load(word) + 1)
        unlock_page(page)
    return 0


@kernel
def try_to_lock(cpu: int, page: int) -> int:
    """Try for the lock as a CPU."""
    return trylock_page(page)


@kernel
def release(cpu: int, page: int) -> None:
    """Unlock as a CPU."""
    unlock_page(page)


LAYERS = (functions_of(page_lock), functions_of(sys.modules[__name__]))


def page_of(machine: Machine) -> int:
    machine.segment.pages["flags"][5] = ANON
    return machine.segment.address["vmemmap"] + 5 * PAGE.SIZE


@pytest.fixture
def machine(make_machine: MachineFactory) -> Machine:
    return make_machine(*LAYERS, nr_cpus=NR_CPUS)


def test_locked_once_and_the_kind_stays(machine: Machine) -> None:
    page, cpu = page_of(machine), machine.cpu(0)
    assert machine.call("try_to_lock", cpu, page) == 1
    assert machine.call("try_to_lock", cpu, page) == 0
    assert machine.segment.pages["flags"][5] == ANON | Pg.LOCKED
    machine.call("release", cpu, page)
    assert machine.segment.pages["flags"][5] == ANON


def test_no_count_is_lost(machine: Machine) -> None:
    page, word = page_of(machine), machine.segment.scratch(0)
    calls = {i: ("count_locked", machine.cpu(i), page, word, ROUNDS) for i in range(NR_CPUS)}
    with machine.workers() as workers:
        workers.start_gated(calls)
        workers.join()
    assert machine.segment.word(word) == NR_CPUS * ROUNDS
    assert machine.segment.pages["flags"][5] == ANON


def test_all_who_wait_get_it(machine: Machine) -> None:
    page, word = page_of(machine), machine.segment.scratch(0)
    machine.call("try_to_lock", machine.cpu(0), page)
    with machine.workers() as workers:
        for i in (1, 2):
            workers.start(i, "count_locked", machine.cpu(i), page, word, 1)
        workers.wait_until(lambda: machine.segment.pages["flags"][5] & Pg.WAITERS)
        machine.call("release", machine.cpu(0), page)
        workers.join()
    assert machine.segment.word(word) == 2
