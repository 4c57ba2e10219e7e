# SPDX-License-Identifier: MIT
"""What a workload can be told, on the Python side and in ``CPU.workload``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from spfemu.layout import CPU, PAGE_SIZE, WORD

FIRST_STATE = 16
TRACE = "trace"
"""Name of the workload that makes the calls of a recording (spfemu.replay.workload)."""
STRESS = "stress"
"""Name of the random mix that checks what it finds (spfemu.stress.mix)."""


class Param(IntEnum):
    """Byte offsets in a CPU block of the words that the parent writes before the set-up."""

    SIZE = CPU.workload + 0 * WORD
    """Bytes of an area."""
    AREAS = CPU.workload + 1 * WORD
    PAGES = CPU.workload + 2 * WORD
    """Pages touched per operation and area."""
    PERIOD = CPU.workload + 3 * WORD
    """Least time between two operations of a writer [cycles]; 0: none."""
    OVERLAP = CPU.workload + 4 * WORD
    """1: writers work in the areas in which the workers fault."""
    WORKER = CPU.workload + 5 * WORD
    """Index of this worker among the workers (or writer among the writers) of its mm."""
    WORKERS = CPU.workload + 6 * WORD
    """Workers (or writers) of its mm."""
    LEADER = CPU.workload + 7 * WORD
    """Address of the CPU block of the first worker of this mm, which makes what all share."""
    BRK_GAP = CPU.workload + 8 * WORD
    """Bytes left between the present break and the part of the heap that is used."""
    NS_PER_CYCLE = CPU.workload + 9 * WORD
    """Nanoseconds per cycle, in units of 2^-20."""
    TRACE_FIRST = CPU.workload + 10 * WORD
    """Address of this thread's first entry in the area `trace`, for the workload of that name."""
    TRACE_END = CPU.workload + 11 * WORD
    """Address behind its last one."""
    TRACE_FILES = CPU.workload + 12 * WORD
    """Address of the words that hold the files."""
    TRACE_NR_FILES = CPU.workload + 13 * WORD


class State(IntEnum):
    """Byte offsets in a CPU block of the words that belong to the workload."""

    AREA = CPU.workload + FIRST_STATE * WORD
    """First address of what is mapped."""
    STRIDE = CPU.workload + (FIRST_STATE + 1) * WORD
    """Distance between areas [bytes]."""
    NEXT = CPU.workload + (FIRST_STATE + 2) * WORD
    """Cycle count before which a writer does nothing."""
    TIMER = CPU.workload + (FIRST_STATE + 3) * WORD
    """Futex word that stays 0: a writer sleeps on it."""
    TURN = CPU.workload + (FIRST_STATE + 4) * WORD
    """Which area of a ring was used last."""
    HEAP = CPU.workload + (FIRST_STATE + 5) * WORD
    """Address of the worker's own heap, 0 until it is made."""
    FILE = CPU.workload + (FIRST_STATE + 6) * WORD
    """The worker's own file, as calls name it."""
    JOINED = CPU.workload + (FIRST_STATE + 7) * WORD
    """1: this CPU takes part in what monitors count on."""
    TRACE_PASS = CPU.workload + (FIRST_STATE + 10) * WORD
    """Passes that this thread has made."""
    TRACE_START = CPU.workload + (FIRST_STATE + 11) * WORD
    """Futex word: the pass in which this thread may begin; written by whoever makes it."""
    TRACE_ARRIVED = CPU.workload + (FIRST_STATE + 12) * WORD
    """Futex word of the first worker: passes that the others have made, added up."""


@dataclass(frozen=True)
class Parameters:
    """How a workload is run; `None` becomes the workload's default."""

    size: int = 16 << 20
    """Bytes of an area."""
    areas: int = 1
    pages: int = 1
    """Pages touched per operation and area, where that is not the whole area."""
    rate: float = 0.0
    """Operations per second and writer; 0: as fast as they can."""
    overlap: bool = False
    workers: int = 1
    writers: int = 0

    @property
    def size_pages(self) -> int:
        """Pages of an area."""
        return -(-self.size // PAGE_SIZE)


@dataclass(frozen=True)
class Needs:
    """What a workload may hold at one time, in all its workers together."""

    frames: int
    vmas: int
    mms: int = 0
    """mms of children."""
    uffds: int = 0
    """userfaultfd contexts."""
    chains: int = 0
    """anon_vma_chains: one for each VMA of a child and anon_vma that it has inherited."""
    files: int = 0
    """Open files."""
    cached: int = 0
    """Of the frames, those of the page cache, which nothing reclaims."""
    model: int = 0
    """Words in which the workload keeps what memory must hold."""


def table_frames(pages: int, regions: int) -> int:
    """Page tables that `regions` mappings of `pages` pages in all need at most."""
    return pages // 512 + 6 * regions


def file_frames(parameters: Parameters) -> int:
    """Pages of each worker's own file and nodes of the page cache's index."""
    pages = parameters.size_pages
    return parameters.workers * (pages + pages // 512 + 4)


def ring_needs(parameters: Parameters, vmas: int) -> Needs:
    """Each worker's ring of `areas` areas and one more, in at most `vmas` VMAs."""
    pages = parameters.size_pages * (parameters.areas + 1) * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), vmas * parameters.workers)
