# SPDX-License-Identifier: MIT
"""Calls of one process, one after another: what goes wrong here needs no race."""

from spfemu.mm.flags import Errno, Madv, Map, Prot
from spfemu.mm.mcopy import UffdCopy
from spfemu.stress.schedules.memory import HUGE, SWAP, Huge, Swapping
from spfemu.stress.schedules.process import Process
from spfemu.stress.schedules.schedule import expect, schedule
from spfemu.stress.schedules.served import WP, Served

AREA = 1 << 40
PAGE = AREA + 4096
NEXT = PAGE + 4096
ELSEWHERE = 1 << 41
HOLE = 1 << 42
EFAULT, ENOMEM = int(Errno.EFAULT), int(Errno.ENOMEM)


@schedule()
def one_by_one(process: Process, seed: int) -> None:
    """Threads map, write, read, drop, protect and unmap memory, one call after another.

    The last one to have the mmap lock is a writer, but for CPU 0, on which it was a reader.
    """
    process.map(AREA, 16)
    for page in range(4):
        process.write(AREA + (page << 12), page + 1)
    expect("a read of a hole", process.call("read", HOLE, cpu=0), (-EFAULT, 0))
    expect("advice about a hole", process.call("dontneed", HOLE, 4096), -ENOMEM)
    expect("the drop of a page", process.call("dontneed", PAGE, 4096), 0)
    expect("the page behind it", process.call("read", NEXT, cpu=0), (0, 3))
    expect("the mprotect", process.call("mprotect", AREA, 4096, int(Prot.READ)), 0)
    process.map(ELSEWHERE, 4)
    process.write(ELSEWHERE, 5)
    expect("what is read", process.call("read", ELSEWHERE, cpu=0), (0, 5))
    expect("the munmap", process.call("munmap", ELSEWHERE, 4 << 12), 0)
    process.map(HOLE, 4)


@schedule()
def a_part_is_unmapped(process: Process, seed: int) -> None:
    """The upper half of an area is unmapped."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    expect("the munmap", process.call("munmap", AREA + (8 << 12), 8 << 12), 0)


@schedule()
def four_areas(process: Process, seed: int) -> None:
    """Four areas are mapped, one above the other, that cannot be merged."""
    for number in range(4):
        process.map(AREA + (number << 20), 4)


@schedule()
def a_child_reads(process: Process, seed: int) -> None:
    """A CPU runs a child for a while, which lives on."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    child = process.call("fork")
    expect("what the child reads", process.in_child(child, "read", AREA), (0, 1))


@schedule()
def a_file_is_mapped_and_cut(process: Process, seed: int) -> None:
    """A file is mapped, read, cut, and made as long as it was."""
    file = process.file(2)
    process.map_file(AREA, file, 2, Map.SHARED)
    expect("what is read", process.call("read", PAGE), (0, 101))
    expect("the cut", process.call("ftruncate", file, 4096), 0)
    expect("the growth", process.call("ftruncate", file, 8192), 0)
    expect("what was cut off", process.call("pread", file, 4096), 0)


@schedule()
def pin_of_an_untouched_page(process: Process, seed: int) -> None:
    """A page is pinned that nobody has touched."""
    process.map(AREA, 16)
    expect("frames pinned", process.call("pin", PAGE, 1), 1)
    process.call("unpin")


@schedule()
def a_subscriber_hears_of_a_drop(process: Process, seed: int) -> None:
    """Somebody subscribes, and a page is dropped that it never reads."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    expect("the subscription", process.call("subscribe") > 0, True)
    expect("the drop", process.call("dontneed", AREA, 4096), 0)


@schedule(process=Served)
def a_registration_ends(process: Served, seed: int) -> None:
    """A page is protected for a monitor, which then serves its area no longer."""
    process.map(AREA, 16)
    process.serves(AREA, 16, WP)
    process.write(PAGE, 2)
    protect = ("writeprotect", process.ctx, PAGE, 4096, int(UffdCopy.WP))
    expect("the protection", process.call(*protect), 0)
    expect("its end", process.call("unregister", process.ctx, AREA, 16 << 12), 0)


@schedule(SWAP, Swapping)
def a_swapped_page_is_unmapped(process: Swapping, seed: int) -> None:
    """A page is unmapped that is in the swap area."""
    expect("the munmap", process.call("munmap", AREA, 16 << 12), 0)


@schedule(HUGE, Huge)
def a_range_is_collapsed(process: Huge, seed: int) -> None:
    """Small pages become a huge one."""
    expect("the collapse", process.call("advise", AREA, 2 << 20, int(Madv.COLLAPSE)), 0)
