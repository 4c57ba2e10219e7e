# SPDX-License-Identifier: MIT
"""What a round of a bench does inside the emulated kernel, as one call."""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_SIZE
from spfemu.mm.flags import Errno, Map, Prot
from spfemu.mm.mmap_lock import (
    mmap_read_lock,
    mmap_read_unlock,
    mmap_seq_read_check,
    mmap_seq_read_start,
    mmap_write_lock,
    mmap_write_unlock,
)
from spfemu.mm.sched import cond_resched
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.syscalls import sys_mmap, sys_munmap
from spfemu.mm.vma import find_vma
from spfemu.primitives import load
from spfemu.workloads.common import read_pages, write_pages

READ_WRITE = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
SETTLE_TURNS = 64


@kernel
def loop_write_pages(cpu: int, start: int, end: int) -> int:
    """Write a word to every page; 0 or the first error."""
    return write_pages(cpu, start, end)


@kernel
def loop_read_pages(cpu: int, start: int, end: int) -> int:
    """Read a word of every page; 0 or the first error."""
    return read_pages(cpu, start, end)


@kernel
def map_afresh(cpu: int, start: int, length: int) -> int:
    """Map an area in the place of what is there, with no page and no page table."""
    result = sys_munmap(cpu, start, length)
    if result < 0:
        return result
    settle(cpu)
    result = sys_mmap(cpu, start, length, READ_WRITE, FIXED)
    return 0 if result == start else -Errno.ENOMEM


@kernel
def settle(cpu: int) -> None:
    """Let what was freed through RCU come back, as it does between operations."""
    for _ in range(SETTLE_TURNS):
        cond_resched(cpu)


@kernel
def map_apart(cpu: int, start: int, count: int) -> int:
    """Map `count` pages with a free page after each, so that each is a VMA of its own."""
    for i in range(count):
        address = start + 2 * i * PAGE_SIZE
        if sys_mmap(cpu, address, PAGE_SIZE, READ_WRITE, FIXED) != address:
            return -Errno.ENOMEM
    return 0


@kernel
def unmap(cpu: int, start: int, length: int) -> int:
    """Unmap an area."""
    return sys_munmap(cpu, start, length)


@kernel
def loop_find_vma(cpu: int, start: int, count: int, step: int, lookups: int) -> int:
    """Look up one page after another of those of `map_apart`; returns how many were missed.

    `count` is a power of two and `step` is odd, so that all VMAs get their turn, none next to the
    one before.
    """
    mm = load(cpu + CPU.mm)
    missed = 0
    i = 0
    for _ in range(lookups):
        i = (i + step) & (count - 1)
        if find_vma(cpu, mm, start + 2 * i * PAGE_SIZE) == 0:
            missed += 1
    return missed


@kernel
def loop_spin_lock(cpu: int, count: int) -> None:
    """Take and release the page_table_lock."""
    lock = load(cpu + CPU.mm) + MM.page_table_lock
    for _ in range(count):
        spin_lock(cpu, lock)
        spin_unlock(lock)


@kernel
def loop_mmap_read_lock(cpu: int, count: int) -> None:
    """Take and release the mmap lock for reading: what a classical fault pays."""
    mm = load(cpu + CPU.mm)
    for _ in range(count):
        mmap_read_lock(cpu, mm)
        mmap_read_unlock(cpu, mm)


@kernel
def loop_mmap_write_lock(cpu: int, count: int) -> None:
    """Take and release the mmap lock for writing, the sequence count included."""
    mm = load(cpu + CPU.mm)
    for _ in range(count):
        mmap_write_lock(cpu, mm)
        mmap_write_unlock(cpu, mm)


@kernel
def loop_mmap_seq(cpu: int, count: int) -> int:
    """Read the sequence count and check it: what a speculative fault pays instead."""
    mm = load(cpu + CPU.mm)
    failed = 0
    for _ in range(count):
        seq = mmap_seq_read_start(mm)
        if mmap_seq_read_check(cpu, mm, seq, Event.SPF_ABORT_VMA_COPY) == 0:
            failed += 1
    return failed
