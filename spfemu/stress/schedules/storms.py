# SPDX-License-Identifier: MIT
"""Three threads in random orders, in memory that is written, unmapped, protected, shared."""

from spfemu.mm.flags import PMD_SIZE, Errno, Prot
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process
from spfemu.stress.schedules.schedule import expect, random_orders, runs_randomly

AREA = 1 << 40
PAGE = AREA + 4096
WORD = PAGE + 8
ELSEWHERE = 1 << 41
ACROSS = AREA + PMD_SIZE - (16 << 12)
"""Pages from here on lie across two page tables."""
EFAULT = int(Errno.EFAULT)
READ = int(Prot.READ)


@random_orders()
def write_and_unmap(process: Process, seed: int) -> None:
    """A page is written and read while everything around it is unmapped."""
    process.map(AREA, 4)
    process.write(AREA, 1)
    calls = (("A", "write", PAGE, 7), ("B", "munmap", AREA, 4 << 12), ("C", "read", PAGE))
    a, _, c = runs_randomly(process, seed, *calls)
    expect("result of the write", a, 0, -EFAULT)
    expect("what is read", c, (0, 0), (0, 7), (-EFAULT, 0))
    for address in (AREA, PAGE):
        expect("a read of what was unmapped", process.call("read", address), (-EFAULT, 0))


@random_orders()
def write_and_remap(process: Process, seed: int) -> None:
    """A page is unmapped, mapped again and read, while it and its neighbour are written."""
    process.map(AREA, 4)
    process.write(PAGE, 5)
    calls = (("A", "write", PAGE, 7), ("B", "remap", PAGE, 4096), ("C", "write", PAGE + 4096, 8))
    a, b, c = runs_randomly(process, seed, *calls)
    expect("result of the write", a, 0, -EFAULT)
    expect("what is read after mapping", b, (0, 0), (0, 7))
    expect("result of the neighbour's write", c, 0)
    expect("the neighbour", process.read(PAGE + 4096), 8)


@random_orders()
def write_and_drop(process: Process, seed: int) -> None:
    """Two threads write words of a page that is dropped meanwhile."""
    process.map(AREA, 4)
    process.write(PAGE, 5)
    calls = (("A", "write", PAGE, 7), ("B", "dontneed", AREA, 4 << 12), ("C", "write", WORD, 8))
    expect("results", runs_randomly(process, seed, *calls), [0, 0, 0])
    expect("the first word", process.read(PAGE), 0, 7)
    expect("the second word", process.read(WORD), 0, 8)


@random_orders()
def write_and_protect(process: Process, seed: int) -> None:
    """A page is written while the right to do so is taken."""
    process.map(AREA, 4)
    process.write(AREA, 1)
    calls = (
        ("A", "write", PAGE, 7),
        ("B", "mprotect", AREA, 4 << 12, READ),
        ("C", "write", AREA, 8),
    )
    a, b, c = runs_randomly(process, seed, *calls)
    expect("results", {a, b, c} <= {0, -EFAULT}, True)
    expect("a write to what is read-only", process.call("write", PAGE, 9, cpu=0), -EFAULT)
    expect("a write through an old translation", process.call("write", AREA, 9), -EFAULT)
    expect("the page", process.read(PAGE), 7 if a == 0 else 0)
    expect("the first page", process.read(AREA), 8 if c == 0 else 1)


@random_orders()
def two_writes_to_a_new_page(process: Process, seed: int) -> None:
    """Threads write words of a page and of its neighbour that are not there yet."""
    process.map(AREA, 4)
    calls = (("A", "write", PAGE, 7), ("B", "write", WORD, 8), ("C", "write", PAGE + 4096, 9))
    expect("results", runs_randomly(process, seed, *calls), [0, 0, 0])
    expect("the words", [process.read(a) for a in (PAGE, WORD, PAGE + 4096)], [7, 8, 9])


@random_orders()
def two_writes_after_a_read(process: Process, seed: int) -> None:
    """Threads write words of a page that is the zero page so far."""
    process.map(AREA, 4)
    process.write(AREA, 1)
    process.read(PAGE)
    calls = (("A", "write", PAGE, 7), ("B", "write", WORD, 8), ("C", "read", PAGE))
    a, b, c = runs_randomly(process, seed, *calls)
    expect("results", (a, b), (0, 0))
    expect("what is read", c, (0, 0), (0, 7))
    expect("the words", (process.read(PAGE), process.read(WORD)), (7, 8))


@random_orders()
def split_and_merge(process: Process, seed: int) -> None:
    """A page of an area is written that is cut and joined around it."""
    process.map(ACROSS, 32)
    process.write(ACROSS + (20 << 12), 1)
    address = ACROSS + (6 << 12)
    calls = (
        ("A", "write", address, 7),
        ("B", "mprotect", ACROSS, 4 << 12, READ),
        ("C", "mprotect", ACROSS, 16 << 12, RW),
    )
    expect("results", runs_randomly(process, seed, *calls), [0, 0, 0])
    expect("the word", process.read(address), 7)


@random_orders()
def write_and_fork(process: Process, seed: int) -> None:
    """Threads write words of a page while their process forks, and the child's page stays."""
    process.map(AREA, 4)
    process.write(PAGE, 5)
    calls = (("A", "write", PAGE, 7), ("B", "fork"), ("C", "write", WORD, 8))
    a, child, c = runs_randomly(process, seed, *calls)
    expect("results of the writes", (a, c), (0, 0))
    expect("the words", (process.read(PAGE), process.read(WORD)), (7, 8))
    assert isinstance(child, int)
    before = process.in_child(child, "read", PAGE), process.in_child(child, "read", WORD)
    expect("the child's first word", before[0], (0, 5), (0, 7))
    expect("the child's second word", before[1], (0, 0), (0, 8))
    process.write(PAGE, 11)
    expect("the child's word after a write", process.in_child(child, "read", PAGE), before[0])
    expect("a write of the child's", process.in_child(child, "write", WORD, 12), 0)
    expect("the parent's word after it", process.read(WORD), 8)


@random_orders()
def write_after_a_fork(process: Process, seed: int) -> None:
    """Threads write to pages that a child shares, and one of them is unmapped."""
    process.map(AREA, 4)
    process.write(AREA, 4)
    process.write(PAGE, 5)
    child = process.call("fork")
    calls = (
        ("A", "write", PAGE, 7),
        ("B", "write", WORD, 8),
        ("C", "munmap", AREA, 4096),
    )
    expect("results", runs_randomly(process, seed, *calls), [0, 0, 0])
    expect("the words", (process.read(PAGE), process.read(WORD)), (7, 8))
    seen = [process.in_child(child, "read", address) for address in (AREA, PAGE, WORD)]
    expect("the child's words", seen, [(0, 4), (0, 5), (0, 0)])
    process.child_exits(child)
