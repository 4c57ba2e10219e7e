# SPDX-License-Identifier: MIT
"""Schedules in which a store is late or a load early, as on arm64: see docs/weak-memory.md.

Most have a mapping that grows down: its start is changed, then its page offset.  A fault that sees
one change without the other gives its page the index of another address.
"""

from spfemu.engines.script import Memory, ScriptCpu, after, before
from spfemu.layout import ANON_VMA, CPU, MM, PAGE_SIZE, VMA
from spfemu.mm.flags import Errno, Prot
from spfemu.segment import Geometry
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads
from spfemu.stress.schedules.schedule import expect, schedule

AREA = 1 << 40
PAGE = AREA + (10 << 12)
BELOW = AREA - 4096
LENGTH = 16 << 12
FAR = AREA + (1 << 21)
"""An address whose page table is another."""
EFAULT = int(Errno.EFAULT)
OLD = 0x7
"""Old contents of a frame: as an entry, one that maps the frame at 0."""


class WeakThreads(Threads):
    """Threads with store buffers and early loads."""

    MEMORY = Memory.WEAK

    def __init__(self, process: Process) -> None:
        super().__init__(process, memory=self.MEMORY)

    def writes(self) -> ScriptCpu:
        """Thread A, which writes to a page without one."""
        return self.thread("A", "write", PAGE, 7)

    def grows(self) -> ScriptCpu:
        """Thread B, which maps a page below the area: one mapping becomes larger."""
        return self.thread("B", "mmap", BELOW, 4096, RW, FIXED)


def area(process: Process) -> int:
    """Map an area that has an anon_vma and a page table; returns the address of its VMA."""
    process.map(AREA, 16)
    process.write(AREA + (12 << 12), 1)
    vmas = process.segment.vmas
    ((index,),) = ((vmas["vm_start"] == AREA) & (vmas["slab_state"] == 1)).nonzero()
    return process.segment.address["vmas"] + int(index) * VMA.SIZE


def empty_area(process: Process) -> int:
    """Do the same, with no page in it: what is done to it flushes nothing."""
    vma = area(process)
    process.map(AREA + 2 * LENGTH, 1)
    process.write(AREA + 2 * LENGTH, 1)  # keeps the page table
    process.call("dontneed", AREA, LENGTH, cpu=1)
    return vma


def frames(process: Process) -> range:
    """Addresses of all frames."""
    segment = process.segment
    return range(segment.address["frames"], segment.base + segment.size, PAGE_SIZE)


def finish(a: ScriptCpu, b: ScriptCpu) -> None:
    """Let the write and the mmap come to their ends."""
    expect("the write", a.runs_to_end(letting=[b]), 0)
    expect("the mmap", b.runs_to_end(letting=[a]), BELOW)


@schedule()
def fault_before_the_odd_count_is_visible(process: Process, seed: int) -> None:
    """A writer has changed one of two fields, and its count is not seen odd yet."""
    vma = area(process)
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.grows()
        b.holds_back(process.segment.mm(0) + MM.mmap_seq)
        b.runs_until(after("write_once", address=vma + VMA.vm_start))
        finish(a, b)


@schedule()
def fault_before_the_odd_count_of_its_vma_is_visible(process: Process, seed: int) -> None:
    """The same with the count of the VMA."""
    vma = area(process)
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.grows()
        b.holds_back(vma + VMA.vm_sequence)
        b.runs_until(after("write_once", address=vma + VMA.vm_start))
        finish(a, b)


@schedule()
def fault_after_the_even_count_is_visible(process: Process, seed: int) -> None:
    """A writer has left, and one of its two changes is not seen yet."""
    vma = area(process)
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.grows()
        b.holds_back(vma + VMA.vm_pgoff)
        b.runs_until(after("mmap_seq_write_leave"))
        finish(a, b)


@schedule()
def fault_that_reads_the_vma_early(process: Process, seed: int) -> None:
    """A fault reads the count after a writer, and one of the two fields before it."""
    vma = area(process)
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.grows()
        a.reads_early(vma + VMA.vm_pgoff)
        a.runs_until(before("mmap_seq_read_start"))
        b.runs_to_end()
        finish(a, b)


@schedule()
def fault_after_the_unlock_is_visible(process: Process, seed: int) -> None:
    """A writer has unlocked the VMA, and one of its two changes is not seen yet."""
    vma = area(process)
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.grows()
        b.holds_back(vma + VMA.vm_pgoff)
        b.runs_until(after("vma_end_write_all"))
        finish(a, b)


@schedule()
def fault_that_locks_the_vma_beside_its_writer(process: Process, seed: int) -> None:
    """A fault has the VMA's lock before a writer's changes, and looks at the number after them."""
    vma = empty_area(process)
    with WeakThreads(process) as threads:
        a = threads.writes().reads_early(vma + VMA.vm_flags)
        b = threads.thread("B", "mprotect", AREA, LENGTH, int(Prot.READ))
        a.runs_until(before("down_read_trylock", inside="vma_start_read"))
        b.runs_until(after("vma_start_write"))
        a.runs_until(after("down_read_trylock", inside="vma_start_read"))
        b.runs_to_end()
        expect("the write", a.runs_to_end(), -EFAULT)


@schedule()
def fault_before_the_vma_is_seen_locked(process: Process, seed: int) -> None:
    """A writer has changed one of two fields, and the VMA is not seen locked yet."""
    vma = area(process)
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.grows()
        b.holds_back(vma + VMA.vm_lock_seq)
        b.runs_until(after("write_once", address=vma + VMA.vm_start))
        finish(a, b)


@schedule()
def fault_in_a_vma_that_is_used_again(process: Process, seed: int) -> None:
    """A fault has found a VMA whose slot becomes another's, which forbids what it allowed."""
    vma = empty_area(process)
    cpu = process.segment.cpu(1)
    with WeakThreads(process) as threads:
        a = threads.thread("A", "read", PAGE)
        a.runs_until(after("__find_vma"))
        threads.thread("B", "munmap", AREA, LENGTH).runs_to_end()
        c = threads.cpu("C", "thread_mmap", cpu, AREA, LENGTH, int(Prot.NONE), FIXED)
        c.holds_back(*(vma + f for f in (VMA.vm_flags, VMA.vm_page_prot, VMA.vm_lock_seq)))
        c.runs_until(after("vma_mark_attached"))
        expect("the read", a.runs_to_end(letting=[c]), (-EFAULT, 0))
        c.runs_to_end()


@schedule()
def read_of_a_page_that_is_cleared_late(process: Process, seed: int) -> None:
    """A thread maps a page whose frame had other contents, and another reads it."""
    process.map(AREA, 16)
    process.call("write", PAGE + 8, OLD, cpu=1)
    process.call("dontneed", PAGE, 4096, cpu=1)
    with WeakThreads(process) as threads:
        a = threads.thread("A", "read", PAGE + 8)
        b = threads.thread("B", "write", PAGE, 7).holds_back(*frames(process))
        b.runs_until(after("set_pte"))
        expect("what is read", a.runs_to_end(letting=[b]), (0, 0))
        b.runs_to_end()


@schedule()
def walk_of_a_table_that_is_cleared_late(process: Process, seed: int) -> None:
    """A thread links a table whose frame had other contents, and another walks through it."""
    process.map(AREA, 1024)
    process.call("write", AREA + 8, OLD, cpu=1)
    process.call("dontneed", AREA, 4096, cpu=1)
    with WeakThreads(process) as threads:
        a = threads.thread("A", "read", FAR + 4096)
        b = threads.thread("B", "write", FAR, 7).holds_back(*frames(process))
        b.runs_until(after("set_pte", inside="table_alloc"))
        expect("what is read", a.runs_to_end(letting=[b]), (0, 0))
        b.runs_to_end()


@schedule()
def two_writes_of_which_one_is_late(process: Process, seed: int) -> None:
    """A thread fills an entry under the page-table lock, and another has the lock after it."""
    area(process)
    with WeakThreads(process) as threads:
        a = threads.writes()
        b = threads.thread("B", "write", PAGE + 8, 8)
        b.runs_until(before("set_pte"))
        b.holds_back(b.fiber.raw[3])
        b.runs_until(after("spin_unlock"))
        expect("the first write", a.runs_to_end(letting=[b]), 0)
        expect("the second write", b.runs_to_end(letting=[a]), 0)
    expect("what was written", (process.read(PAGE), process.read(PAGE + 8)), (7, 8))


@schedule(Geometry(nr_cpus=3, nr_swap=64))
def reclaim_by_an_anon_vma_that_is_set_up_late(process: Process, seed: int) -> None:
    """A thread makes an anon_vma, another maps a page with it, and a third evicts that page."""
    process.map(AREA, 16)
    process.read(AREA + (12 << 12))
    start = process.segment.address["anon_vmas"] + ANON_VMA.root
    count = process.segment.geometry.nr_anon_vmas
    roots = range(start, start + count * ANON_VMA.SIZE, ANON_VMA.SIZE)
    with WeakThreads(process) as threads:
        a = threads.writes()
        b = threads.thread("B", "write", AREA, 8).holds_back(*roots)
        b.runs_until(after("anon_vma_set"))
        expect("the write", a.runs_to_end(letting=[b]), 0)
        for name in ("C", "D"):
            threads.cpu(name, "thread_reclaim", process.segment.cpu(2)).runs_to_end(letting=[b])
        expect("the other write", b.runs_to_end(), 0)
    expect("what was written", process.read(PAGE), 7)


@schedule()
def lookup_beside_a_late_unlink(process: Process, seed: int) -> None:
    """A fault looks up a VMA that is seen to be unlinked only later, and again with the lock."""
    empty_area(process)
    root = process.segment.mm(0) + MM.mm_rb
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(after("mmap_seq_read_start"))
        b.holds_back(root)
        b.runs_until(after("vmacache_invalidate"))
        a.runs_until(after("__find_vma"))
        b.runs_to_end()
        expect("the write", a.runs_to_end(), -EFAULT)


@schedule()
def write_by_a_cpu_that_is_seen_idle(process: Process, seed: int) -> None:
    """A CPU with a page in its TLB goes on from idle while the page is unmapped."""
    process.map(AREA, 16)
    process.call("write", PAGE, 1, cpu=0)
    with WeakThreads(process) as threads:
        a, b = threads.writes(), threads.thread("B", "munmap", AREA, LENGTH)
        a.holds_back(process.segment.cpu(0) + CPU.state)
        a.runs_until(after("cpu_idle_exit"))
        b.runs_to_end(letting=[a])
        expect("the write", a.runs_to_end(), -EFAULT)
