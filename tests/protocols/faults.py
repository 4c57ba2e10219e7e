# SPDX-License-Identifier: MIT
"""Faults of every kind: a process in which the access of a thread A is about to be one."""

import functools

from spfemu.engines.script import ScriptCpu, after, before
from spfemu.events import Event
from spfemu.layout import ADDRESS_SPACE, FILE, PAGE
from spfemu.mm.flags import PMD_SIZE, FileOps, Madv, Map, Prot
from spfemu.mm.khugepaged import Scan
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
"""Always written: the anon_vma and the page table of the area are there."""
FAULT_AT = AREA + 4096
LOW_PAGES = 8
LOW = AREA - (LOW_PAGES << 12)
"""Where the VMA begins.  Nothing is mapped below AREA: a writer there flushes no TLB."""
PAGES = 24
NEIGHBOUR = AREA + (1 << 29)
"""Another mapping, below the same upper tables."""
NR_SWAP = 300

KINDS = {
    "read": (Event.ANON_ZERO_PAGE,),
    "write": (Event.ANON_PAGE,),
    "reuse": (Event.WP_REUSE,),
    "copy": (Event.WP_COPY,),
    "hint": (Event.NUMA_HINT_FAULTS,),
    "swap": (Event.PSWPIN, Event.SWAP_CACHE_HIT),
    "huge": (Event.THP_SPLIT_PMD,),
    "stack": (Event.STACK_GROWN,),
    "file read": (Event.FILE_PAGE,),
    "file copy": (Event.FILE_COW,),
    "shared write": (Event.FILE_SHARED,),
    "shmem": (Event.FILE_SHARED,),
}
"""Kinds of fault, and of what one is counted when such a fault is handled."""
FILES = {
    "file read": (FileOps.GENERIC, Map.PRIVATE),
    "file copy": (FileOps.GENERIC, Map.PRIVATE),
    "shared write": (FileOps.GENERIC, Map.SHARED),
    "shmem": (FileOps.SHMEM, Map.SHARED),
}
READS = {"read": 0, "stack": 0, "file read": 100 + LOW_PAGES + 1}
"""Kinds that are reads, and what they find; the others write 7."""
ON_A_PAGE = {"reuse", "copy", "hint", "swap", "huge"}
"""Kinds that find 2 on an anonymous page."""
SMALL = Geometry(nr_cpus=3, nr_spare_mms=2, nr_nodes=2)
GEOMETRY = {
    "swap": Geometry(nr_cpus=3, nr_spare_mms=2, nr_frames=600, nr_swap=NR_SWAP),
    "huge": Geometry(nr_cpus=3, nr_spare_mms=2, nr_frames=2048, nr_huge=2),
}

LOCKING = {
    "vma-lock": after("down_write", inside="vma_start_write"),
    "vma-refcount": after("cmpxchg_acquire", inside="vma_enter_locked"),
}
"""Where a writer keeps new faults out of a VMA that it is about to lock."""
TAKING = {
    "vma-lock": before("down_read_trylock", inside="vma_start_read"),
    "vma-refcount": before("cmpxchg_acquire", inside="vma_start_read"),
}
"""Where a fault is about to lock its VMA."""


class Faulting(Process):
    """A process of threads A, on CPU 0, B and C; C, and B if need be, prepare and check."""

    def __init__(self, protocol: str, kind: str, engine) -> None:
        self.protocol, self.kind = protocol, kind
        self.length = (LOW_PAGES << 12) + (PMD_SIZE if kind == "huge" else 16 << 12)
        super().__init__(engine, Segment.create(GEOMETRY.get(kind, SMALL)))

    def begin(self, seed: int = 1) -> None:
        super().begin(seed)
        self.address = LOW - 4096 if self.kind == "stack" else FAULT_AT
        self.unmapped = False
        self.map(NEIGHBOUR, 1)
        self.write(NEIGHBOUR, 1)
        self.maps(LOW)
        self.write(AREA, 1)
        if self.kind in ON_A_PAGE:
            # in a frame of another node than A's
            assert self.call("write", FAULT_AT, 2, cpu=1) == 0
        getattr(self, f"prepares_{self.kind}", lambda: None)()

    def maps(self, start: int) -> None:
        """Make a mapping of the kind."""
        if self.kind in FILES:
            ops, flags = FILES[self.kind]
            self.in_file = self.file(PAGES, ops)
            self.map_file(start, self.in_file, self.length >> 12, int(flags))
        else:
            flags = FIXED | int(Map.GROWSDOWN if self.kind == "stack" else 0)
            assert self.call("mmap", start, self.length, RW, flags) == start

    def prepares_copy(self) -> None:
        assert self.call("fork") > 0

    def prepares_reuse(self) -> None:
        child = self.call("fork")
        self.engine.call("mmput", self.segment.cpu(2), child)

    def prepares_hint(self) -> None:
        assert self.call("scan") == 0

    def prepares_swap(self) -> None:
        assert self.call("advise", FAULT_AT, 4096, Madv.PAGEOUT) == 0

    def prepares_huge(self) -> None:
        assert self.call("collapse", AREA) == Scan.SUCCEED
        self.prepares_copy()

    def faults(self, threads: Threads, until=None) -> ScriptCpu:
        """A, about to fault, or at a point of it."""
        call = ("read", self.address) if self.kind in READS else ("write", self.address, 7)
        a = threads.thread("A", *call)
        return a if until is None else a.runs_until(until)

    def splits(self, threads: Threads, until=None) -> ScriptCpu:
        """B, which protects what is below AREA against writing, up to a point of that."""
        b = threads.thread("B", "mprotect", LOW, LOW_PAGES << 12, int(Prot.READ))
        return b if until is None else b.runs_until(until)

    def enters(self, threads: Threads) -> ScriptCpu:
        """B, which has begun to change the VMA and stays inside."""
        if self.protocol.startswith("spf-vma"):
            return self.splits(threads, after("vm_write_begin", inside="__split_vma"))
        return self.splits(threads, after("mmap_seq_write_enter"))

    def unmaps(self, threads: Threads, until) -> ScriptCpu:
        """B, which has unmapped all of it up to a point."""
        self.unmapped = True
        return threads.thread("B", "munmap", LOW, self.length).runs_until(until)

    def given_up(self) -> dict[str, int]:
        """What A has counted instead of a success without the mmap lock."""
        return self.aborts() | {n: c for n, c in self.vma_lock().items() if n != "SUCCESS"}

    def cached_page(self) -> tuple[int, object]:
        """PAGE of the file's page at the fault, as an address and a record."""
        segment = self.segment
        offset = segment.word(self.in_file + FILE.f_mapping) - segment.address["mappings"]
        pages = int(segment.mappings[offset // ADDRESS_SPACE.SIZE]["i_pages"])
        address = segment.word(pages + 8 * ((FAULT_AT - LOW) >> 12))
        return address, segment.pages[(address - segment.address["vmemmap"]) // PAGE.SIZE]


def take_all_frames(process: Process) -> list[int]:
    """Leave no CPU a frame, not even one that it keeps: it would be asked for that."""
    nr_cpus = process.segment.geometry.nr_cpus
    calls = [
        functools.partial(process.engine.call, "rmqueue", process.segment.cpu(index))
        for index in range(nr_cpus)
    ]
    return [page for call in calls for page in iter(call, 0)]


def put_back(process: Process, taken: list[int]) -> None:
    """Give back frames to CPU 0."""
    for page in taken:
        process.engine.call("put_new_page", process.segment.cpu(0), page)
