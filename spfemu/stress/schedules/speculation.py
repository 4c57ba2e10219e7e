# SPDX-License-Identifier: MIT
"""One speculative fault and one writer that comes in just the wrong moment."""

from spfemu.engines.script import after, before, waits
from spfemu.layout import FILE, PAGE_SIZE
from spfemu.mm.flags import Errno, Madv, Map, Prot
from spfemu.mm.irq import CpuState
from spfemu.mm.vma import SlabState
from spfemu.segment import Geometry
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads
from spfemu.stress.schedules.schedule import (
    expect,
    finish_beside,
    has_to_wait,
    random_orders,
    runs_randomly,
    schedule,
)
from spfemu.stress.schedules.served import Served

AREA = 1 << 40
PAGE = AREA + PAGE_SIZE
ELSEWHERE = 1 << 41
EFAULT, EINTR = int(Errno.EFAULT), int(Errno.EINTR)
LENGTH = 16 << 12
SWAP = Geometry(nr_cpus=3, nr_frames=600, nr_swap=300, nr_spare_mms=2)


@schedule()
def write_in_the_gate_beside_munmap(process: Process, seed: int) -> None:
    """A fault is about to take the page-table lock when everything is unmapped."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(after("pte_lockptr"))
        b.runs_until(before("free_pgtables"), letting=[a])
        a.runs_to_end(letting=[b])
        b.runs_to_end(letting=[a])
    expect("a read of what was unmapped", process.call("read", PAGE), (-EFAULT, 0))


@schedule(CONFIG_MMU_GATHER_RCU_TABLE_FREE=0)
def gate_behind_a_munmap(process: Process, seed: int) -> None:
    """A fault is on its way from the walk to the gate while the tables that it found are freed."""
    process.map(ELSEWHERE, 4)
    process.write(ELSEWHERE, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", ELSEWHERE + PAGE_SIZE, 7)
        a.runs_until(before("pte_map_lock_speculative"))
        finish_beside(process, threads.thread("B", "munmap", ELSEWHERE, 4 << 12))
        expect("the write", a.runs_to_end(), -EFAULT)
    # a check behind this one has read an entry of a table that was free by then
    expect("why the fault gave up", process.aborts(), {"PTE_MAP_LOCK_SEQ1": 1})


@schedule()
def copy_beside_munmap(process: Process, seed: int) -> None:
    """A fault has copied a page when everything is unmapped."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.read(PAGE)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(before("pte_map_lock", inside="wp_page_map_copy"))
        b.runs_until(before("tlb_finish_mmu"), letting=[a])
        a.runs_to_end(letting=[b])
        b.runs_to_end(letting=[a])
    expect("a read of what was unmapped", process.call("read", PAGE), (-EFAULT, 0))


@schedule()
def read_without_tables_beside_munmap(process: Process, seed: int) -> None:
    """A fault has copied its VMA, whose tables are not there yet, when that is unmapped."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.map(ELSEWHERE, 4)
    with Threads(process) as threads:
        a = threads.thread("A", "read", ELSEWHERE)
        b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)
        a.runs_until(after("mmap_seq_read_check"))
        b.runs_to_end(letting=[a])
        expect("the read", a.runs_to_end(letting=[b]), (-EFAULT, 0))


@schedule()
def write_beside_two_munmaps(process: Process, seed: int) -> None:
    """A fault meets one writer that downgrades its lock, and then another."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.map(ELSEWHERE, 8)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)
        c = threads.thread("C", "munmap", ELSEWHERE + (4 << 12), 4 << 12)
        b.runs_until(after("mmap_write_downgrade"))
        expect("the write", a.runs_to_end(letting=[b]), 0)
        c.runs_to_end(letting=[b])
        b.runs_to_end(letting=[c])


@schedule()
def copy_of_a_vma_beside_a_split(process: Process, seed: int) -> None:
    """A fault has copied the start of its VMA, but not the offset, when that is cut."""
    process.map(AREA, 16)
    process.write(PAGE, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", AREA + (10 << 12), 7)
        b = threads.thread("B", "mprotect", AREA + (8 << 12), 8 << 12, RW | int(Prot.EXEC))
        a.runs_until(after("load", nth=1, inside="copy_pvma"))
        expect("the mprotect", b.runs_to_end(letting=[a]), 0)
        expect("the write", a.runs_to_end(letting=[b]), 0)


@schedule()
def read_beside_a_merge(process: Process, seed: int) -> None:
    """A fault looks for a VMA that has left the tree and is about to be part of another."""
    process.map(AREA, 16)
    process.write(AREA + (12 << 12), 1)
    assert process.call("mprotect", AREA, 8 << 12, int(Prot.READ)) == 0
    with Threads(process) as threads:
        a = threads.thread("A", "read", PAGE)
        b = threads.thread("B", "mprotect", AREA, 8 << 12, RW)
        b.runs_until(after("vma_rb_erase"))
        expect("the read", a.runs_to_end(letting=[b]), (0, 0))
        b.runs_to_end()


@random_orders()
def two_writers(process: Process, seed: int) -> None:
    """Two threads map memory while a third writes a page of another area."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    calls = (
        ("A", "write", PAGE, 7),
        ("B", "mmap", ELSEWHERE, 4096, RW, FIXED),
        ("C", "mmap", ELSEWHERE + 8192, 4096, RW, FIXED),
    )
    found = runs_randomly(process, seed, *calls)
    expect("results", found, [0, ELSEWHERE, ELSEWHERE + 8192])


@schedule()
def a_killed_writer(process: Process, seed: int) -> None:
    """A signal ends the wait of a writer for another, and later a third one comes."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        b = threads.thread("B", "mmap", ELSEWHERE, 4096, RW, FIXED)
        c = threads.thread("C", "munmap", AREA, 4096)
        b.runs_until(after("mmap_write_lock_killable"))
        # for a holder that sleeps nobody spins
        process.segment.cpus["state"][1] = CpuState.IDLE
        c.runs_until(waits())
        process.segment.cpus["state"][1] = CpuState.RUNNING
        process.call("kill", process.segment.cpu(2), cpu=0)
        expect("the killed call", c.runs_to_end(), -EINTR)
        b.runs_to_end()
    process.segment.cpus["fatal_signal"][2] = 0
    process.map(ELSEWHERE, 4)
    expect("a write", process.call("write", PAGE, 7, cpu=0), 0)


@schedule()
def lookup_beside_munmap(process: Process, seed: int) -> None:
    """A fault looks its VMA up between two steps of a munmap that takes it away."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(after("mmap_seq_read_start"))
        b.runs_until(before("vma_rb_erase"))
        a.runs_until(after("__find_vma"))
        b.runs_until(after("mmap_write_downgrade"))
        expect("the write", a.runs_to_end(letting=[b]), -EFAULT)
        b.runs_to_end(letting=[a])


@schedule()
def a_fault_beside_a_growing_stack(process: Process, seed: int) -> None:
    """A fault has copied the start of a stack, but not the offset, when the stack grows."""
    flags = FIXED | int(Map.GROWSDOWN)
    assert process.call("mmap", AREA, LENGTH, RW, flags) == AREA
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "write", AREA - 4096, 8)
        a.runs_until(after("load", nth=1, inside="copy_pvma"))
        expect("the write below", b.runs_to_end(letting=[a]), 0)
        expect("the write", a.runs_to_end(letting=[b]), 0)


@schedule()
def copy_of_a_vma_beside_munmap(process: Process, seed: int) -> None:
    """A fault is copying its VMA when that is unmapped: it has to stay a VMA's memory."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.map(ELSEWHERE, 4)
    vmas = process.segment.vmas
    with Threads(process) as threads:
        a = threads.thread("A", "write", ELSEWHERE, 7)
        b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)
        (index,) = ((vmas["vm_start"] == ELSEWHERE) & (vmas["slab_state"] == 1)).nonzero()[0]
        a.runs_until(after("load", nth=2, inside="copy_pvma"))
        b.runs_to_end(letting=[a])
        state = SlabState(int(vmas["slab_state"][index]))
        expect("the VMA being copied", state.name, SlabState.RCU_PENDING.name)
        expect("the write", a.runs_to_end(), -EFAULT)


@schedule()
def read_of_a_file_beside_munmap(process: Process, seed: int) -> None:
    """A fault has copied the VMA of a file that nobody else has open when that is unmapped."""
    file = process.file(4)
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.map_file(ELSEWHERE, file, 4, int(Map.PRIVATE))
    assert process.call("close", file) == 0
    with Threads(process) as threads:
        a = threads.thread("A", "read", ELSEWHERE)
        b = threads.thread("B", "munmap", ELSEWHERE, 4 << 12)
        a.runs_until(after("copy_pvma"))
        b.runs_to_end(letting=[a])
        expect("references to the file", process.segment.word(file + FILE.f_count), 1)
        expect("the read", a.runs_to_end(), (-EFAULT, 0))


@schedule(CONFIG_LINUX_VERSION=0x50C)
def copy_while_the_page_is_written_in_place(process: Process, seed: int) -> None:
    """A page is copied for one thread, while others end its sharing, write it and protect it twice.

    The order of Lespinasse's mail of 30 April 2021, see spf_relookup.
    """
    process.map(AREA, 16)
    process.write(PAGE, 5)
    child = process.call("fork")
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE + 8, 1)
        a.runs_until(after("copy_page"))
        process.call("mmput", child)
        finish_beside(process, threads.thread("B", "write", PAGE, 6))
        for name, rights in (("C", int(Prot.READ)), ("D", RW)):
            protects = ("thread_mprotect", process.segment.cpu(2), PAGE, 4096, rights)
            finish_beside(process, threads.cpu(name, *protects))
        expect("the write", a.runs_to_end(), 0)
    expect("what another thread wrote", process.read(PAGE), 6)


@schedule(process=Served)
def read_of_served_memory(process: Served, seed: int) -> None:
    """A page is read that a monitor serves and has not filled."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.serves(AREA, 16)
    with Threads(process) as threads:
        a = threads.thread("A", "read", PAGE)
        has_to_wait(a)
        process.copies(PAGE)
        expect("what is read", a.runs_to_end(), (0, process.DATA))


@schedule(SWAP)
def swap_in_beside_munmap(process: Process, seed: int) -> None:
    """A fault has a swapped page back and is about to map it when everything is unmapped."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.write(PAGE, 2)
    assert process.call("advise", PAGE, 4096, int(Madv.PAGEOUT)) == 0
    with Threads(process) as threads:
        a = threads.thread("A", "read", PAGE)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(before("pte_map_lock_nonspec", inside="do_swap_page"))
        b.runs_until(before("tlb_finish_mmu"), letting=[a])
        a.runs_to_end(letting=[b])
        b.runs_to_end(letting=[a])
    expect("a read of what was unmapped", process.call("read", PAGE), (-EFAULT, 0))
