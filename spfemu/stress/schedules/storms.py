# SPDX-License-Identifier: MIT
"""Three threads in random orders, in memory that is written, unmapped, protected, shared."""

from spfemu.mm.flags import PMD_SIZE, Errno, Prot
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


@random_orders()
def drop_and_read(process: Process, seed: int) -> None:
    """Two threads write words of a page that is dropped with others meanwhile and afterwards."""
    process.map(AREA, 4)
    process.write(PAGE, 5)
    calls = (("A", "write", PAGE, 7), ("B", "dontneed", AREA, 4 << 12), ("C", "write", WORD, 8))
    expect("results", runs_randomly(process, seed, *calls), [0, 0, 0])
    expect("the words", process.read(PAGE) in {0, 7} and process.read(WORD) in {0, 8}, True)
    process.call("dontneed", AREA, 2 << 12)
    expect("what was dropped", (process.read(PAGE), process.read(WORD)), (0, 0))
