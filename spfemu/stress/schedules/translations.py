# SPDX-License-Identifier: MIT
"""Accesses through translations that a CPU has from before, and what is done with frames then."""

import contextlib

from spfemu.engines.script import ScriptStuckError, after, before
from spfemu.layout import CPU, VMF
from spfemu.mm.flags import PMD_SIZE, Errno, Mremap, Prot
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process, Threads
from spfemu.stress.schedules.schedule import (
    expect,
    finish_beside,
    schedule,
)

AREA = 1 << 40
PAGE = AREA + 4096
WORD = PAGE + 8
ELSEWHERE = 1 << 41
NEIGHBOUR = ELSEWHERE + 4 * PMD_SIZE
EFAULT = int(Errno.EFAULT)
READ = int(Prot.READ)
LENGTH = 16 << 12
MOVE = int(Mremap.MAYMOVE | Mremap.FIXED)


@schedule()
def stale_translations(process: Process, seed: int) -> None:
    """A CPU writes to a page, and again after its rights are gone, idle or running meanwhile."""
    process.map(AREA, 16)
    for name, arguments in (("munmap", ()), ("mprotect", (READ,))):
        expect("a write", process.call("write", PAGE, 5, cpu=0), 0)
        process.call(name, AREA, LENGTH, *arguments, cpu=1)
        expect(f"a write after {name}", process.call("write", PAGE, 6, cpu=0), -EFAULT)
        process.call("munmap", AREA, LENGTH)
        process.map(AREA, 16)
    expect("a write", process.call("write", PAGE, 5, cpu=0), 0)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 6)
        b = threads.thread("B", "mprotect", AREA, LENGTH, READ)
        a.runs_until(before("irq_poll", inside="translate"))
        b.runs_to_end(letting=[a])
        expect("a write while mprotect waits", a.runs_to_end(), -EFAULT)


@schedule()
def write_through_an_old_translation_after_a_fork(process: Process, seed: int) -> None:
    """A CPU writes to a page, its process forks, and it writes again."""
    process.map(AREA, 16)
    expect("a write", process.call("write", PAGE, 5, cpu=0), 0)
    child = process.call("fork", cpu=1)
    expect("a write", process.call("write", PAGE, 6, cpu=0), 0)
    expect("the child's word", process.in_child(child, "read", PAGE), (0, 5))
    expect("the word", process.read(PAGE), 6)


@schedule()
def copy_beside_a_fork(process: Process, seed: int) -> None:
    """A fork is about to flush; one thread copies a page that another writes by its TLB."""
    process.map(AREA, 16)
    process.write(PAGE, 2)
    process.write(WORD, 3)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "fork")
        c = threads.thread("C", "write", WORD, 9)
        b.runs_until(before("flush_tlb_mm"))
        with contextlib.suppress(ScriptStuckError):  # it waits for the fork
            a.runs_until(after("copy_page"))
        expect("the write to the word", c.runs_to_end(letting=[a, b]), 0)
        expect("the write", a.runs_to_end(letting=[b]), 0)
        b.runs_to_end(letting=[a])
    expect("the word that was written by an old translation", process.read(WORD), 9)
    expect("the page", process.read(PAGE), 7)


@schedule()
def write_behind_the_gate_beside_mremap(process: Process, seed: int) -> None:
    """A fault is about to map its page when the range is moved."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "mremap", AREA, LENGTH, LENGTH, MOVE, ELSEWHERE)
        a.runs_until(before("set_pte", inside="do_anonymous_write"))
        b.runs_until(before("do_munmap", inside="move_vma"), letting=[a])
        written = a.runs_to_end(letting=[b]) == 0
        b.runs_to_end(letting=[a])
    if written:
        expect("the word at its new address", process.read(ELSEWHERE + 4096), 7)


@schedule()
def pin_beside_dontneed(process: Process, seed: int) -> None:
    """A walk without locks has read an entry whose page is dropped and freed."""
    process.map(AREA, 16)
    process.write(PAGE, 2)
    with Threads(process) as threads:
        a = threads.thread("A", "pin", PAGE, 1)
        b = threads.thread("B", "dontneed", PAGE, 4096)
        a.runs_until(after("read_once", inside="gup_pte"))
        b.runs_until(after("smp_load_acquire", inside="put_page"), letting=[a])
        if "gup_pte" in a.stack:
            a.runs_until(after("page_ref_add_unless_zero", inside="gup_pte"))
        b.runs_to_end(letting=[a])
        expect("frames pinned", a.runs_to_end(), 1)
    process.call("unpin", cpu=0)


@schedule()
def new_pages_are_zero(process: Process, seed: int) -> None:
    """A page is written, dropped, and another word of it written."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.write(PAGE, 5)
    process.call("dontneed", PAGE, 4096)
    process.write(WORD, 6)
    expect("the word that was dropped", process.read(PAGE), 0)


@schedule()
def a_childs_reference_outlives_it(process: Process, seed: int) -> None:
    """A child takes a reference to a page and ends; its parent writes to the page."""
    process.map(AREA, 16)
    process.write(PAGE, 2)
    child = process.call("fork")
    process.in_child(child, "get", PAGE, 1)
    process.child_exits(child)
    process.write(PAGE, 42)
    expect("what the reference shows", process.referenced_word(2), 2)
    process.call("put")


@schedule()
def two_processes_unmap_shared_frames(process: Process, seed: int) -> None:
    """A child unmaps pages, some of them shared, while the parent has collected its own."""
    process.map(AREA, 16)
    for index in range(4):
        process.write(AREA + index * 4096, index)
    child = process.call("fork")
    process.engine.call("switch_mm", process.segment.cpu(1), child)
    # a page of its own among the shared ones: the two do not meet the same frames in a row
    expect("the child's write", process.call("write", PAGE, 7, cpu=1), 0)
    with Threads(process) as threads:
        a = threads.thread("A", "munmap", AREA, LENGTH)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(after("unmap_page_range"))
        expect("the child's munmap", b.runs_to_end(letting=[a]), 0)
        expect("the munmap", a.runs_to_end(), 0)


@schedule()
def two_faults_make_tables(process: Process, seed: int) -> None:
    """Two faults in a new area miss the same page tables."""
    process.map(ELSEWHERE, 4)
    with Threads(process) as threads:
        a = threads.thread("A", "write", ELSEWHERE, 7)
        b = threads.thread("B", "write", ELSEWHERE + 4096, 8)
        a.runs_until(after("alloc_zeroed_page", inside="table_alloc"))
        expect("a write", b.runs_to_end(letting=[a]), 0)
        expect("a write", a.runs_to_end(), 0)
    expect("the words", (process.read(ELSEWHERE), process.read(ELSEWHERE + 4096)), (7, 8))


@schedule()
def two_forks(process: Process, seed: int) -> None:
    """Two threads fork, and one is about to take an mm_struct when the other does."""
    process.map(AREA, 4)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "fork")
        b = threads.thread("B", "fork")
        a.runs_until(after("load", nth=2, inside="slab_take"))
        finish_beside(process, b)
        a.runs_to_end()
        expect("the two children are one", a.result == b.result, False)


@schedule()
def lock_of_a_table_beside_munmap(process: Process, seed: int) -> None:
    """A fault is about to try for a table's lock; the table goes, another is made and locked."""
    process.map(ELSEWHERE, 4)
    process.write(ELSEWHERE, 1)
    process.map(NEIGHBOUR, 4)
    cpu = process.segment.cpu(1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", ELSEWHERE + 4096, 7)
        b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)
        a.runs_until(before("spin_trylock"))
        finish_beside(process, b)
        a.runs_until(after("spin_trylock"))
        d = threads.cpu("D", "thread_write", cpu, NEIGHBOUR, 8)
        d.runs_until(after("spin_lock", inside="pte_map_lock_nonspec"))
        a.runs_until(after("do_speculative_fault"))
        holder = process.segment.word(process.segment.word(cpu + CPU.vmf + VMF.ptl))
        expect("holder of the lock that CPU 1 has taken", holder, 2)
        d.runs_to_end(letting=[a])
        expect("the write", a.runs_to_end(), -EFAULT)


@schedule()
def write_beside_a_writer(process: Process, seed: int) -> None:
    """A fault waits for a writer and goes on when that has ended."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "mprotect", ELSEWHERE, 4096, RW)
        b.runs_until(after("mmap_write_lock_killable"))
        with contextlib.suppress(ScriptStuckError):
            a.runs_to_end()
        b.runs_to_end()
        expect("the write", a.runs_to_end(), 0)
