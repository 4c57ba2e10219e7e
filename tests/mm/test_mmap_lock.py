# SPDX-License-Identifier: MIT
"""The mmap sequence count: odd exactly while a writer is inside, whatever way it came and goes.

The rows of `ROWS` are those of the table in mm/mmap_lock.py's docstring.
"""

import sys
from dataclasses import dataclass

import lock_storm
import pytest
from lock_storm import Data, dawdle, random_next
from mm_machine import Layer, Machine, core_layer, engine_of, renamed, seeds

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.script import Script, after, before, waits
from spfemu.engines.source import functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CACHE_LINE, CPU, MM, RWSEM
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Errno
from spfemu.mm.mmap_lock import (
    HELD_READ,
    HELD_WRITE,
    mmap_read_unlock,
    mmap_seq_addr,
    mmap_seq_read_check,
    mmap_seq_read_start,
    mmap_seq_write_enter,
    mmap_seq_write_leave,
    mmap_write_downgrade,
    mmap_write_lock,
    mmap_write_unlock,
)
from spfemu.mm.rwsem import (
    down_write_killable,
    down_write_trylock,
    downgrade_write,
    up_read,
    up_write,
)
from spfemu.mm.rwsem_words import RWSEM_READER_BIAS, RWSEM_WRITER_LOCKED
from spfemu.mm.sched import cond_resched
from spfemu.primitives import load, read_once, store, write_once

SEQ_FAIL = Event.SPF_ABORT_VMA_COPY


@kernel
def seq_writer(cpu: int, mm: int, data: int, rounds: int) -> int:
    """Change the pair under the write lock, now and then going on as a reader."""
    for _ in range(rounds):
        mmap_write_lock(cpu, mm)
        store(data + Data.FIRST, load(data + Data.FIRST) + 1)
        dawdle(cpu, data)
        store(data + Data.SECOND, load(data + Data.SECOND) + 1)
        if random_next(cpu) % 2:
            mmap_write_downgrade(cpu, mm)
            dawdle(cpu, data)
            mmap_read_unlock(cpu, mm)
        else:
            mmap_write_unlock(cpu, mm)
        cond_resched(cpu)
    return rounds


@kernel
def seq_reader(cpu: int, mm: int, data: int, rounds: int) -> tuple[int, int]:
    """Read the pair without a lock; returns how often it was accepted, and accepted torn."""
    accepted = 0
    torn = 0
    for _ in range(rounds):
        seq = mmap_seq_read_start(mm)
        first = load(data + Data.FIRST)
        dawdle(cpu, data)
        second = load(data + Data.SECOND)
        if mmap_seq_read_check(cpu, mm, seq, SEQ_FAIL) and seq & 1 == 0:
            accepted += 1
            torn += first != second
        cond_resched(cpu)
    return accepted, torn


@kernel
def seq_reader_counts(cpu: int, mm: int, data: int, rounds: int) -> int:
    """Run seq_reader until it has accepted `rounds` pairs; returns how many were torn."""
    accepted = 0
    torn = 0
    while accepted < rounds:
        more, bad = seq_reader(cpu, mm, data, 100)
        accepted += more
        torn += bad
    return torn


# Broken variants


@kernel
def broken_seq_read_check_parity(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Look only whether a writer is inside now, not whether one was."""
    return read_once(mmap_seq_addr(mm)) & 1 == 0


@kernel
def broken_write_lock_killable_enters(cpu: int, mm: int) -> int:
    """Enter although the lock was not got."""
    error = down_write_killable(cpu, mm + MM.mmap_lock)
    mmap_seq_write_enter(mm)
    return error


@kernel
def broken_write_trylock_enters(cpu: int, mm: int) -> int:
    """Enter although the lock was not got."""
    locked = down_write_trylock(cpu, mm + MM.mmap_lock)
    write_once(mmap_seq_addr(mm), read_once(mmap_seq_addr(mm)) + 1)
    return locked


@kernel
def broken_write_unlock_leaves_late(cpu: int, mm: int) -> None:
    """Leave after the lock was released."""
    up_write(cpu, mm + MM.mmap_lock)
    mmap_seq_write_leave(mm)


@kernel
def broken_write_downgrade_stays(cpu: int, mm: int) -> None:
    """Go on as a reader without leaving."""
    downgrade_write(cpu, mm + MM.mmap_lock)


@kernel
def broken_read_unlock_leaves(cpu: int, mm: int) -> None:
    """Leave although downgrading did already."""
    mmap_seq_write_leave(mm)
    up_read(cpu, mm + MM.mmap_lock)


OWN = functions_of(sys.modules[__name__])
PARITY = renamed(OWN, mmap_seq_read_check="broken_seq_read_check_parity")


@dataclass(frozen=True)
class Row:
    """One way to take and release the lock, and what it shall do to a count that was 10."""

    take: str
    result: int
    inside: int
    release: tuple[str, ...]
    afterwards: tuple[int, ...]


ROWS = (
    Row("mmap_read_lock", 0, 10, ("mmap_read_unlock",), (10,)),
    Row("mmap_read_trylock", 1, 10, ("mmap_read_unlock",), (10,)),
    Row("mmap_write_lock", 0, 11, ("mmap_write_unlock",), (12,)),
    Row("mmap_write_lock", 0, 11, ("mmap_write_downgrade", "mmap_read_unlock"), (12, 12)),
    Row("mmap_write_lock_killable", 0, 11, ("mmap_write_unlock",), (12,)),
    Row("mmap_write_trylock", 1, 11, ("mmap_write_unlock",), (12,)),
)
BOTH_LINES = pytest.mark.parametrize("own_line", [0, 1])


class Mm:
    """The mm of a segment, with its count at 10."""

    def __init__(self, segment, own_line: int) -> None:
        self.segment = segment
        self.address = segment.mm(0)
        self.field = "mmap_seq_own" if own_line else "mmap_seq"
        segment.mms[self.field][0] = 10

    @property
    def seq(self) -> int:
        """The count; the word that is not in use stays 0."""
        mm = self.segment.mms[0]
        unused = "mmap_seq" if self.field == "mmap_seq_own" else "mmap_seq_own"
        assert mm[unused] == 0
        return int(mm[self.field])

    @property
    def count(self) -> int:
        """State word of the lock."""
        return self.segment.word(self.address + MM.mmap_lock + RWSEM.count)

    def held(self, cpu: int) -> int:
        """What CPU `cpu` says it holds."""
        return int(self.segment.cpus["mmap_lock_held"][cpu])


@pytest.fixture(params=[NativeEngine, PlainEngine, StepEngine])
def engine_for(request):
    """Return a function that makes an engine of each kind for a configuration."""

    def make(config, *layers: Layer):
        if request.param is PlainEngine:
            functions = dict(core_layer())
            for layer in layers:
                functions.update(layer)
            return PlainEngine(link([functions], config))
        return engine_of(request.param, *layers, config=config)

    return make


def test_the_two_places_of_the_count():
    lock_line = {(MM.mmap_lock + field.offset) // CACHE_LINE for field in RWSEM.FIELDS}
    assert {MM.mmap_seq // CACHE_LINE} == lock_line
    assert MM.mmap_seq_own // CACHE_LINE not in lock_line


@BOTH_LINES
@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.take}-{r.release[0]}")
def test_count_before_inside_and_after(make_segment, engine_for, row, own_line):
    mm = Mm(make_segment(nr_cpus=1), own_line)
    engine = engine_for({"CONFIG_MMAP_SEQ_OWN_LINE": own_line})
    cpu = mm.segment.cpu(0)
    assert engine.call(row.take, cpu, mm.address) == row.result
    assert mm.seq == row.inside
    assert mm.held(0) == (HELD_WRITE if row.inside & 1 else HELD_READ)
    for release, seq in zip(row.release, row.afterwards, strict=True):
        engine.call(release, cpu, mm.address)
        assert mm.seq == seq
        assert mm.held(0) == (HELD_READ if release == "mmap_write_downgrade" else 0)
    assert mm.count == 0


@BOTH_LINES
@pytest.mark.parametrize("holder", ["mmap_read_lock", "mmap_write_lock"])
def test_a_failed_trylock_leaves_the_count(make_segment, engine_for, holder, own_line):
    mm = Mm(make_segment(nr_cpus=2), own_line)
    engine = engine_for({"CONFIG_MMAP_SEQ_OWN_LINE": own_line})
    engine.call(holder, mm.segment.cpu(0), mm.address)
    before_, count = mm.seq, mm.count
    assert engine.call("mmap_write_trylock", mm.segment.cpu(1), mm.address) == 0
    if holder == "mmap_write_lock":
        assert engine.call("mmap_read_trylock", mm.segment.cpu(1), mm.address) == 0
    assert (mm.seq, mm.count, mm.held(1)) == (before_, count, 0)


def scene(make_segment, *layers: Layer) -> tuple[Script, Mm]:
    """Return a script on the stepped engine, and its mm."""
    mm = Mm(make_segment(nr_cpus=3), 0)
    return Script(engine_of(StepEngine, *layers), mm.segment), mm


def kill_a_waiting_writer(make_segment, *layers: Layer) -> Mm:
    """Let CPU 1 wait for a lock that CPU 0 holds for reading, and be killed."""
    script, mm = scene(make_segment, *layers)
    cpus = [mm.segment.cpu(i) for i in range(2)]
    mm.segment.system["cycles_per_tick"] = 0
    with script as s:
        s.cpu("A", "mmap_read_lock", cpus[0], mm.address).runs_to_end()
        b = s.cpu("B", "mmap_write_lock_killable", cpus[1], mm.address)
        b.runs_until(waits())
        s.cpu("K", "send_fatal_signal", cpus[1]).runs_to_end()
        assert b.runs_to_end() == -Errno.EINTR
    return mm


def test_a_killed_lock_leaves_the_count(make_segment):
    mm = kill_a_waiting_writer(make_segment)
    assert (mm.seq, mm.count, mm.held(1)) == (10, RWSEM_READER_BIAS, 0)


def test_the_count_is_even_before_a_waiter_can_be_woken(make_segment):
    script, mm = scene(make_segment)
    with script as s:
        s.cpu("A", "mmap_write_lock", mm.segment.cpu(0), mm.address).runs_to_end()
        for name, release in (("B", "mmap_write_downgrade"), ("C", "mmap_read_unlock")):
            cpu = s.cpu(name, release, mm.segment.cpu(0), mm.address)
            cpu.runs_until(before("atomic_fetch_add_release"))
            assert mm.seq == 12
            cpu.runs_to_end()


def test_the_count_is_odd_only_after_the_lock_was_taken(make_segment):
    script, mm = scene(make_segment)
    with script as s:
        cpu = s.cpu("A", "mmap_write_lock", mm.segment.cpu(0), mm.address)
        cpu.runs_until(after("cmpxchg_acquire"))
        assert (mm.seq, mm.count) == (10, RWSEM_WRITER_LOCKED)
        cpu.runs_to_end()
        assert mm.seq == 11


# The checks above can fail


@pytest.mark.parametrize(
    ("replaced", "variant"),
    [
        ("mmap_write_downgrade", "broken_write_downgrade_stays"),
        ("mmap_read_unlock", "broken_read_unlock_leaves"),
    ],
)
def test_a_wrong_row_would_be_seen(make_segment, replaced, variant):
    engine = engine_of(StepEngine, renamed(OWN, **{replaced: variant}))
    wrong = 0
    for row in ROWS:
        mm = Mm(make_segment(nr_cpus=1), 0)
        cpu = mm.segment.cpu(0)
        engine.call(row.take, cpu, mm.address)
        seen = []
        try:
            for release in row.release:
                engine.call(release, cpu, mm.address)
                seen.append(mm.seq)
        except KernelPanic as panic:
            wrong += panic.code == Bug.SEQ_ODD_ON_LEAVE
        else:
            wrong += tuple(seen) != row.afterwards
    assert wrong


def test_entering_without_the_lock_would_be_seen(make_segment):
    killable = renamed(OWN, mmap_write_lock_killable="broken_write_lock_killable_enters")
    assert kill_a_waiting_writer(make_segment, killable).seq != 10
    trylock = renamed(OWN, mmap_write_trylock="broken_write_trylock_enters")
    mm = Mm(make_segment(nr_cpus=2), 0)
    engine = engine_of(StepEngine, trylock)
    engine.call("mmap_read_lock", mm.segment.cpu(0), mm.address)
    engine.call("mmap_write_trylock", mm.segment.cpu(1), mm.address)
    assert mm.seq != 10


def test_leaving_after_the_release_is_a_bug_for_the_next_writer(make_segment):
    late = renamed(OWN, mmap_write_unlock="broken_write_unlock_leaves_late")
    script, mm = scene(make_segment, late)
    with script as s:
        s.cpu("A", "mmap_write_lock", mm.segment.cpu(0), mm.address).runs_to_end()
        release = s.cpu("B", "mmap_write_unlock", mm.segment.cpu(0), mm.address)
        release.runs_until(before("mmap_seq_write_leave"))
        with pytest.raises(KernelPanic) as panic:
            s.cpu("C", "mmap_write_lock", mm.segment.cpu(1), mm.address).runs_to_end()
    assert panic.value.code == Bug.SEQ_ODD_ON_ENTER


@pytest.mark.parametrize(
    ("function", "seq", "bug"),
    [
        ("mmap_seq_write_enter", 11, Bug.SEQ_ODD_ON_ENTER),
        ("mmap_seq_write_leave", 12, Bug.SEQ_ODD_ON_LEAVE),
    ],
)
def test_wrong_parity_is_a_bug(make_segment, function, seq, bug):
    mm = Mm(make_segment(nr_cpus=1), 0)
    mm.segment.mms["mmap_seq"][0] = seq
    with pytest.raises(KernelPanic) as panic:
        engine_of(StepEngine).call(function, mm.address)
    assert panic.value.code == bug


# The read side


def test_a_check_fails_once_a_writer_came_and_counts_it(make_segment, engine_for):
    mm = Mm(make_segment(nr_cpus=2), 0)
    engine = engine_for({})
    reader, writer = mm.segment.cpu(0), mm.segment.cpu(1)
    failed = lambda: int(mm.segment.cpus["event"][0][SEQ_FAIL])  # noqa: E731
    seq = engine.call("mmap_seq_read_start", mm.address)
    assert seq == 10
    engine.call("mmap_read_lock", writer, mm.address)
    engine.call("mmap_read_unlock", writer, mm.address)
    assert engine.call("mmap_seq_read_check", reader, mm.address, seq, SEQ_FAIL) == 1
    assert failed() == 0
    engine.call("mmap_write_lock", writer, mm.address)
    assert engine.call("mmap_seq_read_start", mm.address) == 11
    assert engine.call("mmap_seq_read_check", reader, mm.address, seq, SEQ_FAIL) == 0
    engine.call("mmap_write_unlock", writer, mm.address)
    assert engine.call("mmap_seq_read_check", reader, mm.address, seq, SEQ_FAIL) == 0
    assert failed() == 2


def read_beside_writers(machine: Machine, rounds: int, own_line: int) -> int:
    """Read without lock beside two writers; returns how many torn pairs were accepted."""
    mm = Mm(machine.segment, own_line)
    data = machine.segment.scratch(64)
    with machine.workers() as workers:
        workers.start_gated(
            {
                0: ("seq_reader_counts", machine.cpu(0), mm.address, data, rounds),
                1: ("seq_writer", machine.cpu(1), mm.address, data, rounds),
                2: ("seq_writer", machine.cpu(2), mm.address, data, rounds),
            }
        )
        torn = workers.join()[0]
    assert mm.seq == 10 + 4 * rounds
    assert mm.count == 0
    assert machine.segment.word(data + Data.FIRST) == 2 * rounds
    return torn


@BOTH_LINES
def test_no_torn_pair_is_accepted(make_machine, own_line):
    config = {"CONFIG_MMAP_SEQ_OWN_LINE": own_line}
    machine = make_machine(functions_of(lock_storm), OWN, config=config, nr_cpus=3)
    raced = 0
    for seed in seeds(4):
        machine.segment.reset(seed)
        assert read_beside_writers(machine, 2000, own_line) == 0
        raced += machine.event(0, SEQ_FAIL)
    assert raced, "inconclusive: no reader ever met a writer"


def test_an_accepted_torn_pair_would_be_seen(make_machine):
    machine = make_machine(functions_of(lock_storm), OWN, PARITY, nr_cpus=3)
    torn = 0
    for seed in seeds(20):
        machine.segment.reset(seed)
        torn += read_beside_writers(machine, 2000, 0)
        if torn:
            return
    pytest.fail("a check of parity alone went unnoticed")


def random_reads(make_segment, seed: int, *layers: Layer) -> int:
    """Read beside a writer in an order drawn from `seed`; returns torn pairs accepted."""
    mm = Mm(make_segment(nr_cpus=2), 0)
    data = mm.segment.scratch(64)
    engine = engine_of(StepEngine, functions_of(lock_storm), OWN, *layers)
    with Script(engine, mm.segment) as s:
        reader = s.cpu("R", "seq_reader", mm.segment.cpu(0), mm.address, data, 8)
        s.cpu("W", "seq_writer", mm.segment.cpu(1), mm.address, data, 3)
        s.runs_randomly(seed)
        return reader.result[1]


def test_random_interleavings_accept_no_torn_pair(make_segment):
    for seed in range(60):
        assert random_reads(make_segment, seed) == 0, f"seed {seed}"


def test_random_interleavings_would_see_a_torn_pair(make_segment):
    assert any(random_reads(make_segment, seed, PARITY) for seed in range(60))


def test_the_held_word_is_the_cpus_own(make_segment):
    mm = Mm(make_segment(nr_cpus=2), 0)
    engine = engine_of(NativeEngine)
    for index in (0, 1):
        engine.call("mmap_read_lock", mm.segment.cpu(index), mm.address)
    engine.call("mmap_read_unlock", mm.segment.cpu(0), mm.address)
    assert (mm.held(0), mm.held(1)) == (0, HELD_READ)
    assert CPU.mmap_lock_held // CACHE_LINE == CPU.irqs_disabled // CACHE_LINE
