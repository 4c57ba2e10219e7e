# SPDX-License-Identifier: MIT
"""Frames taken without a lock while others unmap, copy, fork: references and data stay right.

A pins two pages (as direct I/O does), B interferes; CPU 2 prepares, checks and plays the child.
"""

import pytest
from mutants import mutant_engine

from spfemu.checks import check_segment
from spfemu.engines.plain import KernelPanic
from spfemu.engines.script import after, before, waits
from spfemu.engines.stepped import StepEngine
from spfemu.layout import CPU, PAGE_SIZE
from spfemu.mm.bug import Bug
from spfemu.mm.flags import Errno, Foll, Madv, Prot
from spfemu.mm.gup import GUP_PIN_COUNTING_BIAS
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
EFAULT = int(Errno.EFAULT)
PTE_READ = after("read_once", inside="gup_pte")
COUNTED = after("page_ref_add_unless_zero", inside="gup_pte")


class Pinning(Process):
    """A process with two written pages at PAGE."""

    def begin(self, seed: int = 1) -> None:
        super().begin(seed)
        self.parent = self.segment.mm(0)
        self.map(AREA, 16)
        for page in range(3):
            self.write(AREA + page * PAGE_SIZE, page + 1)

    def frame(self, cpu: int = 0, index: int = 0):
        """The PAGE of a frame that a CPU has pinned."""
        address = int(self.segment.cpus["gup_pages"][cpu][index])
        return self.segment.pages[(address - self.segment.address["vmemmap"]) // 64]

    def word_of(self, page) -> int:
        """The first word of a frame."""
        number = int((page.__array_interface__["data"][0] - self.segment.address["vmemmap"]) // 64)
        return self.segment.word(self.segment.address["frames"] + number * PAGE_SIZE)

    def unpin(self, cpu: int = 0) -> None:
        assert self.call("unpin", cpu=cpu) == 0

    def in_child(self, child: int, function: str, *arguments: int):
        """Run a call of a thread in a forked child, on the CPU that is the parent's else."""
        self.engine.call("switch_mm", self.segment.cpu(2), child)
        result = self.call(function, *arguments)
        self.engine.call("switch_mm", self.segment.cpu(2), self.parent)
        return result

    def exits(self, child: int) -> None:
        self.engine.call("switch_mm", self.segment.cpu(2), child)
        assert self.call("exit", self.parent) == 0

    def violations(self) -> list[str]:
        return check_segment(self.segment)


def pinning(engine: StepEngine) -> Pinning:
    return Pinning(engine, Segment.create(Geometry(nr_cpus=3, nr_spare_mms=2)))


@pytest.fixture
def pins(spf_engine):
    """A process under spf, with either scheme that frees page tables."""
    made = pinning(spf_engine)
    yield made
    made.unpin()
    assert made.violations() == []
    made.segment.close()


@pytest.fixture
def threads(pins):
    with Threads(pins) as script:
        yield script


def test_frames_that_are_there_are_taken_without_a_lock(pins):
    assert pins.call("pin", PAGE, 2, cpu=0) == 2
    assert pins.events(0)["GUP_FAST"] == 2
    assert "GUP_SLOW" not in pins.events(0)
    assert pins.frame()["refcount"] == 1 + GUP_PIN_COUNTING_BIAS
    assert pins.word_of(pins.frame()) == 2
    page = pins.frame()
    pins.unpin()
    assert page["refcount"] == 1


def test_frames_that_are_not_there_are_faulted_in(pins):
    assert pins.call("pin", PAGE, 4, cpu=0) == 4
    counts = pins.events(0)
    assert (counts["GUP_FAST"], counts["GUP_SLOW"], counts["GUP_FAULT"]) == (2, 2, 2)
    assert pins.read(AREA + 4 * PAGE_SIZE) == 0


def test_the_zero_page_is_replaced_before_a_device_may_write(pins):
    assert pins.read(AREA + 3 * PAGE_SIZE) == 0
    assert pins.call("pin", AREA + 3 * PAGE_SIZE, 1, cpu=0) == 1
    assert pins.events(0)["GUP_FAULT"] == 1
    assert pins.frame()["refcount"] == 1 + GUP_PIN_COUNTING_BIAS


def test_a_part_that_may_not_be_written_ends_it(pins):
    assert pins.call("mprotect", AREA + 2 * PAGE_SIZE, PAGE_SIZE, int(Prot.READ)) == 0
    assert pins.call("pin", PAGE, 2, cpu=0) == 1
    pins.unpin()
    assert pins.call("pin", AREA + 2 * PAGE_SIZE, 1, cpu=0) == -EFAULT
    assert pins.call("pin", ELSEWHERE, 1, cpu=0) == -EFAULT
    assert pins.call("pin", -PAGE_SIZE, 1, cpu=0) == -EFAULT


@pytest.mark.parametrize(
    ("flags", "call"), [(Foll.PIN, "get_user_pages_fast"), (Foll.GET, "pin_user_pages_fast")]
)
def test_flags_of_the_other_kind_are_refused(pins, flags, call):
    room = pins.segment.address["scratch"]
    found = pins.engine.call(call, pins.segment.cpu(0), PAGE, 1, int(flags), room)
    assert found == -Errno.EINVAL


def test_references_that_are_no_pins(pins):
    room, cpu = pins.segment.address["scratch"], pins.segment.cpu(2)
    assert pins.engine.call("get_user_pages_fast", cpu, PAGE, 1, 0, room) == 1
    page = pins.segment.word(room)
    index = (page - pins.segment.address["vmemmap"]) // 64
    assert pins.segment.pages["refcount"][index] == 2
    pins.engine.call("put_user_page", cpu, page)
    assert pins.segment.pages["refcount"][index] == 1


def test_what_a_device_writes_is_not_freed_as_clean(pins):
    """MADV_FREE gives a page up unless it is written to again, if only by a device."""
    cpu = pins.segment.cpu(0)
    pins.engine.call("cpu_idle_exit", cpu)
    assert pins.engine.call("sys_madvise", cpu, PAGE, PAGE_SIZE, int(Madv.FREE)) == 0
    pins.engine.call("cpu_idle_enter", cpu)
    assert pins.call("pin", PAGE, 1, cpu=0) == 1
    pins.engine.call("dma_write", cpu, 0, 77)
    pins.unpin()
    pins.engine.call("cpu_idle_exit", cpu)
    assert pins.engine.call("sys_madvise", cpu, PAGE, PAGE_SIZE, int(Madv.PAGEOUT)) == 0
    pins.engine.call("cpu_idle_enter", cpu)
    assert pins.read(PAGE) == 77


def test_what_a_device_is_about_to_write_is_not_freed_as_clean(pins):
    """Somebody who has only a reference may write to the frame at any time."""
    room = pins.segment.cpu(0) + CPU.gup_pages
    cpu = pins.segment.cpu(0)
    write = int(Foll.WRITE)
    assert pins.engine.call("get_user_pages_fast", cpu, PAGE, 1, write, room) == 1
    for advice in (Madv.FREE, Madv.PAGEOUT):
        assert pins.call("advise", PAGE, PAGE_SIZE, int(advice)) == 0
    pins.engine.call("dma_write", cpu, 0, 77)
    pins.engine.call("put_user_page", cpu, pins.segment.word(room))
    assert pins.read(PAGE) == 77


# Unmapping


@pytest.mark.parametrize("point", [PTE_READ, COUNTED], ids=str)
@pytest.mark.parametrize("call", ["dontneed", "munmap"])
def test_who_unmaps_waits_for_who_has_read_the_entry(pins, threads, point, call):
    a = threads.thread("A", "pin", PAGE, 1)
    b = threads.thread("B", call, PAGE, PAGE_SIZE)
    a.runs_until(point)
    b.runs_until(waits())
    assert "flush_tlb_mm" in b.stack

    # A finds that the entry has gone, gives the frame back, and looks again under the lock
    found = a.runs_to_end(letting=[b])
    b.runs_to_end()
    assert pins.events(0)["GUP_RETREAT_PTE"] == 1
    assert found == (1 if call == "dontneed" else -EFAULT)
    assert pins.violations()[:1] == ["CPU 0 still has frames pinned (gup_nr is 1)"] or found < 0
    if found == 1:
        assert pins.word_of(pins.frame()) == 0


def test_a_pinned_frame_outlives_its_mapping(pins, threads):
    a = threads.thread("A", "pin", PAGE, 2)
    b = threads.thread("B", "munmap", AREA, 16 * PAGE_SIZE)
    a.runs_until(after("lockless_pages_from_mm"))
    b.runs_to_end(letting=[a])
    assert a.runs_to_end() == 2
    assert [pins.word_of(pins.frame(0, i)) for i in (0, 1)] == [2, 3]
    assert pins.frame()["refcount"] == GUP_PIN_COUNTING_BIAS


def test_without_the_flush_a_reference_is_lost(own_cache):
    """put_page takes a count of 1 for its own, which holds only because the flush waits."""
    pins = pinning(mutant_engine("spf", "unmap_without_flush"))
    with Threads(pins) as threads:
        a = threads.thread("A", "pin", PAGE, 1)
        b = threads.thread("B", "dontneed", PAGE, PAGE_SIZE)
        a.runs_until(PTE_READ)
        b.runs_until(after("smp_load_acquire", inside="put_page"))
        a.runs_until(COUNTED)
        b.runs_to_end()
        with pytest.raises(KernelPanic) as panic:
            a.runs_to_end()
    assert panic.value.code == Bug.REFCOUNT_UNDERFLOW
    pins.segment.close()


# Copies


def test_a_copy_waits_for_who_has_read_the_entry(pins, threads):
    child = pins.call("fork")
    a = threads.thread("A", "get", PAGE, 1)
    b = threads.thread("B", "write", PAGE, 7)
    a.runs_until(PTE_READ)
    b.runs_until(waits())
    assert "wp_page_copy" in b.stack
    assert a.runs_to_end(letting=[b]) == 1
    assert b.runs_to_end() == 0
    # A has retreated and found the copy
    assert pins.events(0)["GUP_RETREAT_PTE"] == 1
    assert pins.word_of(pins.frame()) == 7
    assert pins.call("put", cpu=0) == 0
    assert pins.in_child(child, "read", PAGE) == (0, 2)
    pins.exits(child)


@pytest.mark.parametrize("protocol", ["spf", "spf_relookup"])
def test_who_has_only_read_a_shared_frame_does_not_see_what_its_owner_writes(engine_of, protocol):
    """By the number of mappings, as before Linux 5.9, the owner writes to the frame in place."""
    pins = pinning(engine_of(protocol))
    child = pins.call("fork")
    assert pins.in_child(child, "get", PAGE, 1) == 1
    pins.exits(child)
    pins.write(PAGE, 42)
    seen = pins.word_of(pins.frame(2))
    assert pins.call("put") == 0
    assert pins.read(PAGE) == 42
    assert seen == (2 if protocol == "spf" else 42)
    assert pins.violations() == []
    pins.segment.close()


# Forks


def write_after_fork(pins) -> int:
    """Let the parent write to its pinned page; returns what the device sees."""
    pins.write(PAGE, 42)
    return pins.word_of(pins.frame())


def test_a_fork_copies_a_pinned_frame_for_the_child(pins):
    assert pins.call("pin", PAGE, 1, cpu=0) == 1
    child = pins.call("fork", cpu=1)
    assert pins.events(1)["FORK_COPY_PINNED"] == 1
    assert write_after_fork(pins) == 42
    assert pins.in_child(child, "read", PAGE) == (0, 2)
    assert pins.in_child(child, "write", PAGE, 3) == 0
    assert pins.read(PAGE) == 42
    assert pins.in_child(child, "read", AREA) == (0, 1)
    pins.exits(child)


def test_a_fork_that_shares_a_pinned_frame_takes_it_from_the_process(own_cache):
    pins = pinning(mutant_engine("spf", "fork_shares_pinned_pages"))
    assert pins.call("pin", PAGE, 1, cpu=0) == 1
    child = pins.call("fork", cpu=1)
    assert write_after_fork(pins) == 2
    pins.unpin()
    pins.exits(child)
    pins.segment.close()


def fork_beside_pin(pins):
    """Pin in the middle of a fork that has just found the frame not pinned."""
    with Threads(pins) as threads:
        a = threads.thread("A", "pin", PAGE, 1)
        b = threads.thread("B", "fork")
        if pins.segment.mms["has_pinned"][0] == 0:
            assert pins.call("pin", AREA, 1, cpu=2) == 1
            pins.unpin(2)
        a.runs_until(after("smp_load_acquire", inside="lockless_pages_from_mm"))
        b.runs_until(before("atomic_fetch_and", nth=2, inside="copy_present_pte"))
        a.runs_until(after("lockless_pages_from_mm"))
        child = b.runs_to_end(letting=[a])
        assert a.runs_to_end() == 1
    return child


def test_a_pin_that_overlaps_with_a_fork_is_tried_again_under_the_lock(pins):
    child = fork_beside_pin(pins)
    assert pins.events(0)["GUP_RETREAT_FORK"] == 1
    assert pins.events(0)["GUP_SLOW"] == 1
    assert write_after_fork(pins) == 42
    assert pins.in_child(child, "read", PAGE) == (0, 2)
    pins.exits(child)


def test_without_the_count_of_forks_the_pin_is_cut_off(own_cache):
    pins = pinning(mutant_engine("spf", "fork_is_silent"))
    child = fork_beside_pin(pins)
    assert write_after_fork(pins) == 2
    pins.unpin()
    pins.exits(child)
    pins.segment.close()


def test_a_pin_during_a_fork_waits_for_its_end(pins, threads):
    a = threads.thread("A", "pin", PAGE, 1)
    b = threads.thread("B", "fork")
    b.runs_until(after("copy_page_range"))
    a.runs_until(waits())
    assert "mmap_read_lock" in a.stack
    child = b.runs_to_end(letting=[a])
    assert a.runs_to_end() == 1
    assert write_after_fork(pins) == 42
    pins.exits(child)


# Many orders


@pytest.mark.parametrize("protocol", ["classic", "spf", "vma_lock", "vma_refcount"])
@pytest.mark.parametrize("seed", range(6))
def test_random_orders_keep_frames_and_counts(engine_of, protocol, seed):
    pins = pinning(engine_of(protocol))
    for number in range(20):
        pins.begin(seed * 100 + number)
        with Threads(pins) as threads:
            threads.thread("A", "pin", PAGE, 2)
            threads.thread("B", "write", PAGE, 9)
            threads.thread("C", "munmap" if number % 2 else "dontneed", PAGE, PAGE_SIZE)
            schedule = threads.runs_randomly(seed * 100 + number)
        pins.unpin()
        assert pins.violations() == [], f"seed {seed * 100 + number}: {schedule}"
    pins.segment.close()


def test_a_protected_page_is_read_only_for_devices(pins):
    assert pins.call("mprotect", AREA, 16 * PAGE_SIZE, int(Prot.READ)) == 0
    assert pins.call("mprotect", AREA, 16 * PAGE_SIZE, RW) == 0
    # the entry is read-only until a write fault: the slow way takes that fault
    assert pins.call("pin", PAGE, 1, cpu=0) == 1
    assert pins.events(0)["WP_REUSE"] == 1
