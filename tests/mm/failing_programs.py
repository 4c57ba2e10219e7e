# SPDX-License-Identifier: MIT
"""Programs of calls and touches for runs in which an allocation fails.

Each takes what it calls by `run.call` and clears up after itself whatever has failed.  `partly`
marks a call that may fail with a part of its work done and seen, `may_differ` one whose result
depends on what was reclaimed before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import PMD_SIZE, FileOps, Foll, Madv, Map, Mremap, Prot
from spfemu.segment import BRK_START

RW = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
AREA = (1 << 40) + 2 * PMD_SIZE - 4 * PAGE_SIZE
"""Pages 4 and up of the area need another page table."""
ELSEWHERE = 1 << 41
HUGE = (1 << 42) + PMD_SIZE


class Run(Protocol):
    """What a program makes its calls through; results that are addresses of objects are kept."""

    buffer: int
    """Address of a word that is nobody else's."""

    def call(
        self, name: str, *arguments: int, partly: bool = False, may_differ: bool = False
    ) -> Any:
        """Call a kernel function, as a CPU that is idle before and after."""

    def mm(self) -> int:
        """Return the address of the mm that the CPU runs."""

    def word(self, address: int) -> int:
        """Return what is at an address of the segment."""


def at(page: int) -> int:
    return AREA + page * PAGE_SIZE


def size(pages: int) -> int:
    return pages * PAGE_SIZE


def fill(run: Run, *pages: int, base: int = AREA) -> None:
    for page in pages:
        run.call("user_write", base + size(page), 100 + page)


def look(run: Run, *pages: int, base: int = AREA) -> None:
    for page in pages:
        run.call("user_read", base + size(page))


def mapped(run: Run, pages: int = 8, flags: int = FIXED) -> None:
    run.call("sys_mmap", AREA, size(pages), RW, flags, partly=True)


def in_child(run: Run, body: Callable[[], None]) -> None:
    """Fork and do something in the child, then end it."""
    parent = run.mm()
    child = run.call("sys_fork")
    if child > 0:
        run.call("switch_mm", child)
        body()
        run.call("exit_mm", parent)


def touches(run: Run) -> None:
    mapped(run)
    look(run, 1)
    fill(run, 0, 1, 5)
    run.call("sys_mmap", 0, size(3), RW, FIXED & ~int(Map.FIXED))
    look(run, 0, 1, 5, 7)


def splits(run: Run) -> None:
    mapped(run, 12)
    fill(run, 0, 2, 4, 6, 8)
    run.call("sys_mprotect", at(2), size(2), int(Prot.READ), partly=True)
    look(run, 0, 2, 4, 6, 8)
    run.call("sys_munmap", at(5), size(2), partly=True)
    run.call("sys_madvise", at(8), size(1), int(Madv.DONTFORK), partly=True)
    run.call("sys_mmap", at(1), size(3), RW, FIXED, partly=True)
    fill(run, 1, 2, 3)
    run.call("sys_madvise", at(0), size(4), int(Madv.DONTNEED), partly=True)
    look(run, 0, 4, 8)


def heap(run: Run) -> None:
    run.call("sys_brk", BRK_START + size(6))
    fill(run, 0, 3, base=BRK_START)
    run.call("sys_brk", BRK_START + size(2))
    look(run, 0, base=BRK_START)
    run.call("sys_brk", BRK_START + size(4))
    look(run, 0, 3, base=BRK_START)


OLD_BREAKS = (BRK_START, BRK_START + size(2), BRK_START + size(6))
"""What brk returns there if it fails."""


def stack(run: Run) -> None:
    run.call("sys_mmap", at(6), size(2), RW, FIXED | int(Map.GROWSDOWN), partly=True)
    fill(run, 5, 3)
    look(run, 3, 5, 7)


def forks(run: Run) -> None:
    mapped(run)
    fill(run, 0, 1, 5)
    look(run, 2)

    def child() -> None:
        fill(run, 0, 2, 3)
        look(run, 0, 1, 5)
        run.call("sys_munmap", at(1), size(1), partly=True)

    in_child(run, child)
    fill(run, 1, 3)
    look(run, 0, 1, 2, 3, 5)
    in_child(run, lambda: look(run, 0, 1, 5))


def families(run: Run) -> None:
    mapped(run)
    fill(run, 0, 6)

    def child() -> None:
        fill(run, 0)
        in_child(run, lambda: fill(run, 0, 6, 7))
        look(run, 0, 6, 7)

    in_child(run, child)
    look(run, 0, 6, 7)


def executes(run: Run) -> None:
    mapped(run)
    fill(run, 0)

    def child() -> None:
        if run.call("exec_mmap") == 0:
            mapped(run)
            fill(run, 1)

    in_child(run, child)
    look(run, 0)


def pins(run: Run) -> None:
    mapped(run)
    fill(run, 0)
    run.call("bio_map_user", at(0), 6, partly=True)
    in_child(run, lambda: fill(run, 0, 5))
    fill(run, 0, 1)
    run.call("bio_release_pages")
    got = run.call("get_user_pages_fast", at(7), 1, int(Foll.WRITE), run.buffer, partly=True)
    if got == 1:
        run.call("put_user_page", run.word(run.buffer))
    look(run, 0, 1, 7)


def moves(run: Run) -> None:
    mapped(run)
    fill(run, 0, 1, 3, 4, 6)
    run.call("sys_mremap", at(6), size(2), size(4), 0, 0)
    moved = run.call(
        "sys_mremap", at(2), size(3), size(5), int(Mremap.MAYMOVE | Mremap.FIXED), ELSEWHERE,
        partly=True,
    )  # fmt: skip
    if moved > 0:
        look(run, 1, 2, base=ELSEWHERE)
        fill(run, 4, base=ELSEWHERE)
    run.call("sys_mremap", at(5), size(3), size(1), 0, 0, partly=True)
    flags = int(Mremap.MAYMOVE | Mremap.DONTUNMAP)
    run.call("sys_mremap", at(0), size(2), size(2), flags, 0, partly=True)
    look(run, 0, 1, 6)


def moves_across_tables(run: Run) -> None:
    mapped(run)
    fill(run, 0, 3, 4, 7)
    flags = int(Mremap.MAYMOVE | Mremap.FIXED)
    target = ELSEWHERE + PMD_SIZE - size(2)
    if run.call("sys_mremap", at(0), size(8), size(8), flags, target) > 0:
        look(run, 0, 3, 4, 7, base=target)
    else:
        look(run, 0, 3, 4, 7)


def swaps(run: Run) -> None:
    mapped(run)
    fill(run, 0, 1, 2, 5)
    run.call("sys_madvise", at(0), size(8), int(Madv.PAGEOUT), partly=True)
    look(run, 0)
    fill(run, 1)
    in_child(run, lambda: (fill(run, 2), look(run, 0, 1, 2, 5)))
    run.call("sys_mremap", at(5), size(1), size(1), int(Mremap.MAYMOVE | Mremap.FIXED), ELSEWHERE)
    run.call("sys_madvise", at(0), size(2), int(Madv.FREE), partly=True)
    run.call("shrink_mms", 8, may_differ=True)
    look(run, 2)


def locks(run: Run) -> None:
    mapped(run)
    run.call("sys_mlock", at(2), size(3), partly=True)
    run.call("sys_munlock", at(3), size(1), partly=True)
    run.call("sys_mlockall", 3, partly=True)
    run.call("sys_mmap", ELSEWHERE, size(2), RW, FIXED, partly=True)
    run.call("sys_munlockall", partly=True)
    run.call("sys_mmap", at(0), size(8), RW, FIXED | int(Map.POPULATE), partly=True)
    look(run, 0, 7)


def file_maps(run: Run, kind: FileOps, flags: Map) -> None:
    file = run.call("sys_create", size(4096), int(kind))
    if file <= 0:
        return
    run.call("sys_pwrite", file, size(1), 7, partly=True)
    run.call("sys_pwrite", file, size(700), 8, partly=True)
    run.call("sys_pread", file, size(1))
    run.call("sys_mmap_file", AREA, size(8), RW, int(flags | Map.FIXED), file, 0, partly=True)
    look(run, 1, 2)
    fill(run, 1, 3)
    in_child(run, lambda: (fill(run, 2, 3), look(run, 1)))
    run.call("sys_munmap", at(2), size(1), partly=True)
    run.call("sys_msync", at(0), size(1), 4, partly=True)
    run.call("sys_mremap", at(3), size(1), size(1), int(Mremap.MAYMOVE | Mremap.FIXED), ELSEWHERE)
    second = run.call("sys_open", file, 3)
    run.call("sys_ftruncate", file, size(3), partly=True)
    look(run, 1)
    run.call("sys_pread", file, size(1))
    for opened in (file, second):
        if opened > 0:
            run.call("sys_close", opened)


def shares_memory(run: Run) -> None:
    mapped(run, flags=int(Map.SHARED | Map.ANONYMOUS | Map.FIXED))
    fill(run, 0)
    in_child(run, lambda: (fill(run, 1, 6), look(run, 0)))
    look(run, 0, 1, 6)


def collapses(run: Run) -> None:
    run.call("sys_mmap", HUGE, PMD_SIZE, RW, FIXED)
    fill(run, 0, 9, 511, base=HUGE)
    run.call("sys_madvise", HUGE, PMD_SIZE, int(Madv.COLLAPSE), may_differ=True)
    look(run, 0, 9, 511, base=HUGE)
    in_child(run, lambda: (fill(run, 0, base=HUGE), look(run, 9, base=HUGE)))
    run.call("sys_mprotect", HUGE + size(8), size(1), int(Prot.READ), partly=True)
    run.call("sys_mremap", HUGE, size(4), size(4), int(Mremap.MAYMOVE | Mremap.FIXED), ELSEWHERE)
    run.call("sys_munmap", HUGE + size(511), size(1), partly=True)
    look(run, 9, base=HUGE)


def userfaults(run: Run) -> None:
    mapped(run)
    run.call("sys_mmap", ELSEWHERE, size(2), RW, FIXED)
    fill(run, 0, 1, base=ELSEWHERE)
    context = run.call("sys_userfaultfd")
    if context <= 0:
        return
    if run.call("userfaultfd_register", context, at(2), size(4), 3, partly=True) == 0:
        run.call("userfaultfd_copy", context, at(3), ELSEWHERE, size(2), 0, partly=True)
        run.call("userfaultfd_zeropage", context, at(2), size(1), 0)
        run.call("userfaultfd_writeprotect", context, at(2), size(1), 2)
        run.call("userfaultfd_writeprotect", context, at(2), size(1), 0)
        run.call("userfaultfd_unregister", context, at(3), size(1), partly=True)
    run.call("userfaultfd_release", context)
    look(run, 0, 2, 3, 4)


def notifies(run: Run) -> None:
    mapped(run)
    fill(run, 0, 1)
    subscription = run.call("mmu_notifier_register", run.mm())
    if subscription > 0:
        run.call("notifier_read", subscription, at(0))
        run.call("notifier_read", subscription, at(6))
    in_child(run, lambda: fill(run, 0))
    fill(run, 0, 6)
    run.call("sys_munmap", at(1), size(1), partly=True)
    if subscription > 0:
        run.call("notifier_read", subscription, at(0))
        run.call("mmu_notifier_unregister", subscription)
    look(run, 0, 6)


PROGRAMS: dict[str, Callable[[Run], None]] = {
    program.__name__: program
    for program in (
        *(touches, splits, heap, stack, forks, families, executes, pins, moves),
        *(moves_across_tables, swaps, locks, shares_memory, collapses, userfaults, notifies),
    )
}
for _kind in (FileOps.GENERIC, FileOps.SHMEM):
    for _flags in (Map.SHARED, Map.PRIVATE):
        PROGRAMS[f"file_maps {_kind.name} {_flags.name}".lower()] = (
            lambda run, kind=_kind, flags=_flags: file_maps(run, kind, flags)
        )
