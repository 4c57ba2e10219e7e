# SPDX-License-Identifier: MIT
"""Pages that are swapped, collapsed, moved, pinned or cut while somebody uses them."""

from spfemu.engines.script import after, before
from spfemu.mm.flags import Errno, Madv, Map
from spfemu.segment import Geometry
from spfemu.stress.schedules.process import Process, Threads
from spfemu.stress.schedules.schedule import expect, finish_beside, schedule, tries_until

AREA = 1 << 40
PAGE = AREA + 4096
SWAP = Geometry(nr_cpus=3, nr_frames=600, nr_swap=300, nr_spare_mms=2)
HUGE = Geometry(nr_cpus=3, nr_frames=2048, nr_huge=2, nr_spare_mms=2)
NODES = Geometry(nr_cpus=3, nr_spare_mms=2, nr_nodes=2)
EIO = int(Errno.EIO)


class Swapping(Process):
    """A process whose page at PAGE, where 2 stands, is in the swap area."""

    def begin(self, seed: int = 1) -> None:
        """Put everything into the initial state, and the page out."""
        super().begin(seed)
        self.map(AREA, 16)
        self.write(AREA, 1)
        self.write(PAGE, 2)
        assert self.call("advise", PAGE, 4096, int(Madv.PAGEOUT)) == 0


class Huge(Process):
    """A process with 2 MiB that may be collapsed, whose first page is 1."""

    def begin(self, seed: int = 1) -> None:
        """Put everything into the initial state, with the page written."""
        super().begin(seed)
        self.map(AREA, 512)
        self.write(AREA, 1)


@schedule(SWAP, Swapping)
def fork_of_a_swapped_page(process: Swapping, seed: int) -> None:
    """A process forks whose page is swapped; parent, then child read it."""
    child = process.call("fork")
    expect("the parent's word", process.call("read", PAGE), (0, 2))
    expect("the child's word", process.in_child(child, "read", PAGE), (0, 2))


@schedule(SWAP, Swapping)
def two_bring_back_one_page(process: Swapping, seed: int) -> None:
    """A fault has found a swapped page in the cache when another one maps it."""
    with Threads(process) as threads:
        a = threads.thread("A", "read", PAGE)
        b = threads.thread("B", "write", PAGE + 8, 7)
        a.runs_until(after("swapin_page"))
        tries_until(b, after("thread_write"), a)
        expect("what is read", a.runs_to_end(letting=[b]), (0, 2))
        expect("the write", b.runs_to_end(letting=[a]), 0)
    expect("the words", (process.read(PAGE), process.read(PAGE + 8)), (2, 7))


@schedule(SWAP, Swapping)
def a_fault_while_a_page_is_read(process: Swapping, seed: int) -> None:
    """A fault finds a page in the swap cache that another one has not read yet."""
    with Threads(process) as threads:
        a = threads.thread("A", "read", PAGE)
        b = threads.thread("B", "read", PAGE)
        a.runs_until(before("swap_readpage"))
        tries_until(b, after("thread_read"))
        a.runs_to_end(letting=[b])
        expect("what is read", b.runs_to_end(letting=[a]), (0, 2))


@schedule(HUGE, Huge)
def pin_beside_a_collapse(process: Huge, seed: int) -> None:
    """A walk without locks has read an entry whose page is collapsed and freed."""
    with Threads(process) as threads:
        a = threads.thread("A", "pin", AREA, 1)
        b = threads.thread("B", "collapse", AREA)
        a.runs_until(after("read_once", inside="gup_pte"))
        tries_until(b, after("smp_load_acquire", inside="put_page"), a)
        if "gup_pte" in a.stack:
            a.runs_until(after("page_ref_add_unless_zero", inside="gup_pte"))
        b.runs_to_end(letting=[a])
        expect("frames pinned", a.runs_to_end(letting=[b]), 1)
    process.call("unpin", cpu=0)


@schedule(HUGE, Huge)
def collapse_of_a_pinned_page(process: Huge, seed: int) -> None:
    """A page is pinned, its range collapsed, and the page written."""
    expect("frames pinned", process.call("pin", AREA, 1, cpu=0), 1)
    process.call("collapse", AREA)
    process.write(AREA, 42)
    expect("what a device sees", process.referenced_word(0), 42)
    process.call("unpin", cpu=0)


@schedule(HUGE, Huge)
def fault_beside_a_collapse(process: Huge, seed: int) -> None:
    """A fault has found a page table that is withdrawn for a huge page."""
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "collapse", AREA)
        a.runs_until(before("pte_map_lock", inside="do_anonymous_write"))
        finish_beside(process, b)
        expect("the write", a.runs_to_end(), 0)
    expect("the words", (process.read(AREA), process.read(PAGE)), (1, 7))


@schedule()
def fork_of_a_pinned_page(process: Process, seed: int) -> None:
    """A page is pinned, its process forks, and writes to it."""
    process.map(AREA, 16)
    process.write(PAGE, 2)
    expect("frames pinned", process.call("pin", PAGE, 1, cpu=0), 1)
    child = process.call("fork", cpu=1)
    process.write(PAGE, 42)
    expect("what a device sees", process.referenced_word(0), 42)
    expect("what the child sees", process.in_child(child, "read", PAGE), (0, 2))
    process.call("unpin", cpu=0)


@schedule()
def pin_beside_a_fork(process: Process, seed: int) -> None:
    """A page is pinned when a fork has just found that it is not."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.write(PAGE, 2)
    expect("frames pinned", process.call("pin", AREA, 1, cpu=2), 1)
    process.call("unpin", cpu=2)
    with Threads(process) as threads:
        a = threads.thread("A", "pin", PAGE, 1)
        b = threads.thread("B", "fork")
        a.runs_until(after("smp_load_acquire", inside="lockless_pages_from_mm"))
        b.runs_until(before("atomic_fetch_and", nth=2, inside="copy_present_pte"))
        a.runs_until(after("lockless_pages_from_mm"))
        b.runs_to_end(letting=[a])
        expect("frames pinned", a.runs_to_end(), 1)
    process.write(PAGE, 42)
    expect("what a device sees", process.referenced_word(0), 42)
    process.call("unpin", cpu=0)


@schedule(NODES, CONFIG_NUMA=1)
def move_of_a_pinned_page(process: Process, seed: int) -> None:
    """A page is pinned, and a fault on another node would have it there."""
    process.map(AREA, 16)
    process.write(PAGE, 2)
    expect("frames pinned", process.call("pin", PAGE, 1, cpu=0), 1)
    process.call("scan")
    expect("what is read", process.call("read", PAGE, cpu=1), (0, 2))
    process.write(PAGE, 42)
    expect("what a device sees", process.referenced_word(0), 42)
    process.call("unpin", cpu=0)


@schedule(NODES, CONFIG_NUMA=1)
def write_while_a_page_moves(process: Process, seed: int) -> None:
    """A page is moved to another node while a thread writes to it by its TLB."""
    word = PAGE + 16
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.write(PAGE, 2)
    process.write(word, 3)
    process.call("scan")
    with Threads(process) as threads:
        b = threads.thread("B", "read", PAGE)
        b.runs_until(after("set_pte", inside="do_numa_page"))
        process.read(word)
        process.write(word, 4)  # C's translation allows writing now
        c = threads.thread("C", "write", word, 6)
        b.runs_until(after("copy_page"))
        expect("the write", c.runs_to_end(letting=[b]), 0)
        expect("what is read", b.runs_to_end(), (0, 2))
    expect("the word", process.read(word), 6)


@schedule()
def read_beyond_a_cut(process: Process, seed: int) -> None:
    """A file is cut whose pages are mapped, and what is gone is read."""
    file = process.file(2)
    process.map_file(AREA, file, 2, Map.SHARED)
    expect("what is read", process.call("read", PAGE, cpu=0), (0, 101))
    expect("the cut", process.call("ftruncate", file, 4096), 0)
    expect("a read beyond the end", process.call("read", PAGE, cpu=0), (-EIO, 0))


@schedule()
def private_copy_beside_a_cut(process: Process, seed: int) -> None:
    """A private copy of a file's page is made while the page is cut off."""
    file = process.file(2)
    process.map_file(AREA, file, 2, Map.PRIVATE)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "ftruncate", file, 4096)
        a.runs_until(before("finish_fault"))
        b.runs_to_end(letting=[a])
        a.runs_to_end(letting=[b])
    expect("a read beyond the end", process.call("read", PAGE), (-EIO, 0))


@schedule()
def fault_beside_a_cut(process: Process, seed: int) -> None:
    """A fault has found a page of a file, and locks it when it has been cut off."""
    file = process.file(2)
    process.map_file(AREA, file, 2, Map.PRIVATE)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "ftruncate", file, 4096)
        a.runs_until(after("find_get_page", inside="filemap_fault"))
        b.runs_to_end(letting=[a])
        expect("the write beyond the end", a.runs_to_end(letting=[b]), -EIO)
    expect("a read beyond the end", process.call("read", PAGE), (-EIO, 0))
