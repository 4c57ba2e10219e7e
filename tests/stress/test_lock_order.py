# SPDX-License-Identifier: MIT
"""LOCK_ORDER: every way to take or release a lock wrongly is seen, and what is sound is not."""

import pytest

from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.symbols import symbol
from spfemu.layout import ADDRESS_SPACE, HELD_MAX, MM, PAGE, PAGE_SIZE, SYSTEM, USERFAULTFD_CTX
from spfemu.measure.build import compose
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Map, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.lock_fault import describe
from spfemu.stress.oracles import lock_order
from spfemu.stress.promises import Promise
from spfemu.workloads.parameters import STRESS


@pytest.fixture(scope="module")
def engines():
    config = {"CONFIG_DEBUG_VM": 1}
    return {
        name: PlainEngine(compose(STRESS, name, config=config, oracles=[lock_order]))
        for name in ("spf", "vma-refcount")
    }


@pytest.fixture
def engine(engines):
    return engines["spf"]


@pytest.fixture
def segment(engine):
    made = Segment.create(
        Geometry(nr_cpus=2, nr_spare_mms=1, nr_frames=128, nr_files=2, nr_uffds=2, stress=1)
    )
    made.mms["mm_users"] = 2
    for index in (0, 1):
        engine.call("cpu_online", made.cpu(index))
    yield made
    made.close()


def spin_unlock(engine, cpu, lock):
    """Unlock as a CPU, which the function's own parameters do not tell."""
    engine.call("irq_poll", cpu)
    engine.call("spin_unlock", lock)


def seen(segment, engine, *call):
    """Do a call that breaks the promise; returns what is said of it."""
    with pytest.raises(KernelPanic) as stopped:
        engine.call(*call)
    assert stopped.value.code == Bug.PROMISE_BROKEN
    record = segment.stress[0]
    assert record["kind"] == Promise.LOCK_ORDER
    return describe(segment, int(record["a"]), int(record["b"]))


def test_a_documented_order_needs_to_be_broken_only_once(engine, segment):
    cpu, ptl = segment.cpu(0), segment.address["vmemmap"] + 70 * PAGE.SIZE + PAGE.ptl
    engine.call("spin_lock", cpu, segment.address["system"] + SYSTEM.zone_lock)

    assert seen(segment, engine, "spin_lock", cpu, ptl) == (
        "waits for the page-table lock of page[70] while it holds a pool lock, which others "
        "take inside of it"
    )


def test_two_cpus_that_never_meet_show_an_inversion(engine, segment):
    one = segment.address["mappings"] + ADDRESS_SPACE.xa_lock
    other = segment.address["uffds"] + USERFAULTFD_CTX.lock
    for lock in (one, other):
        engine.call("spin_lock", segment.cpu(0), lock)
    for lock in (one, other):
        spin_unlock(engine, segment.cpu(0), lock)
    engine.call("spin_lock", segment.cpu(1), other)

    said = seen(segment, engine, "spin_lock", segment.cpu(1), one)

    assert said.startswith("waits for the xa_lock of mapping[0] while it holds a userfaultfd")


def test_a_chain_of_orders_counts_too(engine, segment):
    """What is held inside of the one lock, outside of the other, closes a cycle of three."""
    cpu, system = segment.cpu(0), segment.address["system"]
    xa = segment.address["mappings"] + ADDRESS_SPACE.xa_lock
    uffd = segment.address["uffds"] + USERFAULTFD_CTX.lock
    pool = system + SYSTEM.vma_lock
    for outer, inner in ((pool, xa), (xa, uffd)):
        engine.call("spin_lock", cpu, outer)
        engine.call("spin_lock", cpu, inner)
        spin_unlock(engine, cpu, inner)
        spin_unlock(engine, cpu, outer)
    engine.call("spin_lock", cpu, uffd)

    assert "take inside of it" in seen(segment, engine, "spin_lock", cpu, pool)


def test_a_trylock_makes_no_order_but_is_held(engine, segment):
    cpu, ptl = segment.cpu(0), segment.address["vmemmap"] + 70 * PAGE.SIZE + PAGE.ptl
    zone = segment.address["system"] + SYSTEM.zone_lock
    engine.call("spin_lock", cpu, zone)
    assert engine.call("spin_trylock", cpu, ptl) == 1
    spin_unlock(engine, cpu, zone)

    engine.call("irq_poll", segment.cpu(1))
    assert "page[70], which it does not hold" in seen(segment, engine, "spin_unlock", ptl)


def test_a_lock_that_is_held_for_reading_is_not_released_for_writing(engine, segment):
    cpu, lock = segment.cpu(0), segment.mm(0) + MM.mmap_lock
    engine.call("down_read", cpu, lock)
    assert seen(segment, engine, "up_write", cpu, lock) == (
        "releases the mmap_lock of mm0, which it does not hold so"
    )


def test_nothing_is_held_after_an_operation(engine, segment):
    engine.call("mmap_read_lock", segment.cpu(1), segment.mm(0))
    assert seen(segment, engine, "cond_resched", segment.cpu(1)) == (
        "has ended an operation and still holds the mmap_lock of mm0"
    )


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (("spin_lock", lambda s: s.mm(0) + MM.page_table_lock), "a page_table_lock"),
        (("rcu_read_lock",), "an RCU read-side section"),
        (("local_irq_disable",), "a section with interrupts off"),
    ],
)
@pytest.mark.parametrize("sleeping", ["mmap_read_lock", "synchronize_rcu"])
def test_nobody_sleeps_where_one_must_not(engine, segment, first, named, sleeping):
    cpu = segment.cpu(0)
    name, *lock = first
    engine.call(name, cpu, *(f(segment) for f in lock))
    arguments = [segment.mm(0)] if sleeping == "mmap_read_lock" else []

    said = seen(segment, engine, sleeping, cpu, *arguments)

    assert said.endswith(f"while it holds {named}, with which one must not sleep")


def test_interrupts_off_are_a_lock_for_who_sends_ipis(engine, segment):
    """A CPU spins for a lock with interrupts off that another holds while it flushes."""
    ptl = segment.address["vmemmap"] + 70 * PAGE.SIZE + PAGE.ptl
    engine.call("spin_lock", segment.cpu(0), ptl)
    engine.call("wait_for_ipi", segment.cpu(0), segment.cpu(1), 0)
    spin_unlock(engine, segment.cpu(0), ptl)
    engine.call("local_irq_disable", segment.cpu(1))

    said = seen(segment, engine, "spin_lock", segment.cpu(1), ptl)

    assert "while it holds a section with interrupts off" in said


def test_two_of_a_class_need_a_reason(engine, segment):
    cpu = segment.cpu(0)
    first, second, third = (
        segment.address["vmemmap"] + frame * PAGE.SIZE + PAGE.ptl for frame in (70, 71, 72)
    )
    engine.call("mmap_write_lock", cpu, segment.mm(0))
    engine.call("spin_lock", cpu, first)
    engine.call("spin_lock", cpu, second)  # as mremap does
    assert "for which there is no order" in seen(segment, engine, "spin_lock", cpu, third)


def test_the_same_lock_twice_is_never_right(engine, segment):
    cpu = segment.cpu(0)
    engine.call("mmap_write_lock", cpu, segment.mm(0))
    said = seen(segment, engine, "mmap_read_lock", cpu, segment.mm(0))
    assert "waits for the mmap_lock of mm0 while it holds one of its kind" in said


def test_the_lock_of_a_vma_that_is_a_count_has_its_place(engines, segment):
    engine, cpu = engines["vma-refcount"], segment.cpu(0)
    area = engine.call(
        "sys_mmap", cpu, 0, PAGE_SIZE, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS
    )
    assert area > 0
    vma = int(segment.mms["mmap"][0])
    engine.call("down_write", cpu, segment.address["mappings"] + ADDRESS_SPACE.i_mmap_rwsem)

    said = seen(segment, engine, "vma_enter_locked", cpu, vma, 1)

    assert said.startswith(f"waits for the VMA lock of {symbol(segment, vma)} while it holds")
    assert said.endswith("an i_mmap_rwsem, which others take inside of it")


def test_more_locks_than_there_is_room_for_are_no_fault(engine, segment):
    cpu = segment.cpu(0)
    for _ in range(HELD_MAX + 2):
        engine.call("rcu_read_lock", cpu)
    for _ in range(HELD_MAX + 2):
        engine.call("rcu_read_unlock", cpu)
    engine.call("cond_resched", cpu)
    assert "does not hold" in seen(segment, engine, "rcu_read_unlock", cpu)
