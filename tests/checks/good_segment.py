# SPDX-License-Identifier: MIT
"""A segment at rest in which everything that can be checked has happened once.

Two mms: CPUs 0 and 1 run mm 0, CPU 2 runs mm 1.  There are areas of all rights, zero pages, split
VMAs, frames on every kind of list, VMAs and page tables that wait in RCU queues, translations in
TLBs and VMAs in vmacaches.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

import spfemu.mm
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import Program, functions_of, link
from spfemu.layout import PAGE_SIZE, VMA, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, Map, Prot
from spfemu.mm.mcopy import UffdCopy
from spfemu.mm.userfaultfd_register import UffdMode
from spfemu.protocols import spf
from spfemu.segment import Geometry, Segment

MODULES = tuple(m.name for m in pkgutil.iter_modules(spfemu.mm.__path__) if m.name != "worker")
"""All of the kernel but what runs a workload."""
AREAS = 0x1000_0000
AREA_STRIDE = 0x10_0000
AREA_PAGES = 8
SERVED = 9
"""The area of which a userfaultfd serves the faults."""
FAR = 1 << 39
"""Where a mapping has tables of its own at every level but the top."""
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
READ_WRITE = int(Prot.READ | Prot.WRITE)


def area(index: int, page: int = 0) -> int:
    """Address of a page of an area of mm 0."""
    return AREAS + index * AREA_STRIDE + page * PAGE_SIZE


@dataclass
class GoodSegment:
    """A segment, what it was when it was good, and ways to the places that tests corrupt."""

    segment: Segment
    copy: NDArray[np.int64]

    def restore(self) -> None:
        """Undo every corruption."""
        self.segment.words[:] = self.copy

    def vma_index(self, address: int) -> int:
        """Slot of the VMA of mm 0 that begins at `address`."""
        vmas = self.segment.vmas
        found = (vmas["vm_start"] == address) & (vmas["vm_mm"] == self.segment.mm(0))
        (index,) = np.flatnonzero(found & (vmas["slab_state"] == 1))
        return int(index)

    def vma(self, address: int) -> Any:
        """The VMA of mm 0 that begins at `address`, as a record."""
        return self.segment.vmas[self.vma_index(address)]

    def vma_at(self, address: int) -> Any:
        """The VMA slot at a slab address, as a record."""
        return self.segment.vmas[(address - self.segment.address["vmas"]) // VMA.SIZE]

    def entry(self, address: int, level: int = 0, mm: int = 0) -> int:
        """Index in `segment.words` of the entry for a virtual address; level 0 is the pte."""
        table = int(self.segment.mms["pgd"][mm])
        for above in (3, 2, 1):
            slot = table + ((address >> (12 + 9 * above)) & 511) * WORD
            if above == level:
                return (slot - self.segment.base) // WORD
            table = self.segment.word(slot) & PTE_ADDR_MASK
        return (table + ((address >> 12) & 511) * WORD - self.segment.base) // WORD

    def page(self, address: int, level: int = 0, mm: int = 0) -> Any:
        """PAGE of the frame (or of the table, for higher levels) that an entry names."""
        named = int(self.segment.words[self.entry(address, level, mm)]) & PTE_ADDR_MASK
        return self.segment.pages[(named - self.segment.address["frames"]) // PAGE_SIZE]

    def cpu_word(self, cpu: int, offset: int) -> int:
        """Index in `segment.words` of a field of a CPU block."""
        return (self.segment.cpu(cpu) + offset - self.segment.base) // WORD


def kernel(config: Mapping[str, int]) -> Program:
    """Return the whole kernel with protocol spf."""
    layers = [functions_of(import_module("spfemu.mm." + name)) for name in MODULES]
    return link([*layers, functions_of(spf)], config)


class _Builder:
    def __init__(self, config: Mapping[str, int]) -> None:
        self.engine = PlainEngine(kernel(config))
        self.segment = Segment.create(
            Geometry(nr_cpus=3, nr_mms=2, nr_frames=600, nr_vmas=120, nr_anon_vmas=60)
        )
        self.segment.mms["mm_users"] = [2, 1]
        self.segment.mms["cpumask"][:, 0] = [0b011, 0b100]

    def on(self, index: int, name: str, *arguments: int) -> Any:
        """Run a function on a CPU; the others are idle, so nobody waits for them."""
        cpu = self.segment.cpu(index)
        self.engine.call("cpu_idle_exit", cpu)
        result = self.engine.call(name, cpu, *arguments)
        self.engine.call("cpu_idle_enter", cpu)
        return result

    def map(self, index: int, address: int, pages: int, prot: int = READ_WRITE) -> None:
        result = self.on(index, "sys_mmap", address, pages * PAGE_SIZE, prot, FIXED)
        assert result == address

    def write(self, index: int, address: int, pages: int) -> None:
        for page in range(pages):
            assert self.on(index, "user_write", address + page * PAGE_SIZE, page + 1) == 0

    def read(self, index: int, address: int) -> None:
        assert self.on(index, "user_read", address)[0] == 0

    def areas(self) -> None:
        """Twelve areas of mm 0, used by both CPUs, with all kinds of rights."""
        for index in range(12):
            self.map(index % 2, area(index), AREA_PAGES)
            self.write(index % 2, area(index), 4)
            self.read(1 - index % 2, area(index, 5))
        self.on(0, "sys_mprotect", area(2), AREA_PAGES * PAGE_SIZE, Prot.READ)
        self.on(1, "sys_mprotect", area(3), AREA_PAGES * PAGE_SIZE, Prot.NONE)
        self.on(0, "sys_mprotect", area(4, 2), PAGE_SIZE, Prot.READ)
        self.on(0, "sys_mprotect", area(5), AREA_PAGES * PAGE_SIZE, Prot.READ | Prot.EXEC)

    def churn(self) -> None:
        """Free frames until they are on every kind of list; leave work in RCU queues."""
        self.map(0, FAR, 160)
        self.write(0, FAR, 160)
        assert self.on(0, "sys_madvise", FAR, 160 * PAGE_SIZE, 4) == 0
        for index in range(2):
            self.map(index, 2 * FAR, AREA_PAGES)
            self.write(index, 2 * FAR, 2)
            assert self.on(index, "sys_munmap", 2 * FAR, AREA_PAGES * PAGE_SIZE) == 0
        self.on(0, "rcu_barrier")
        # two objects wait for a grace period, three are new
        self.on(1, "rcu_start_waiting")
        self.on(1, "sys_munmap", area(7), AREA_PAGES * PAGE_SIZE)

    def served(self) -> None:
        """A userfaultfd that serves an area, of which it protects a page."""
        ctx = self.on(0, "sys_userfaultfd")
        length = AREA_PAGES * PAGE_SIZE
        modes = UffdMode.MISSING | UffdMode.WP
        assert self.on(0, "userfaultfd_register", ctx, area(SERVED), length, modes) == 0
        wp = UffdCopy.WP
        assert self.on(0, "userfaultfd_writeprotect", ctx, area(SERVED, 1), PAGE_SIZE, wp) == 0

    def failures(self) -> None:
        """Accesses and calls that fail."""
        assert self.on(0, "user_read", FAR - PAGE_SIZE)[0] < 0
        assert self.on(1, "user_write", area(2), 1) < 0
        assert self.on(1, "sys_mprotect", FAR - PAGE_SIZE, PAGE_SIZE, Prot.READ) < 0

    def other_mm(self) -> None:
        """A few pages of mm 1 at an address that mm 0 uses too."""
        self.map(2, area(0), AREA_PAGES)
        self.write(2, area(0), 3)

    def settle(self) -> None:
        """Make every CPU's TLB and vmacache current and fill them."""
        self.on(0, "sys_brk", int(self.segment.mms["start_brk"][0]) + 3 * PAGE_SIZE)
        for index in range(2):
            for number in (0, 1, 2):  # the pages differ, and so do their slots in the TLB
                self.read(index, area(number, number))
            assert self.on(index, "user_write", area(10, 3), 1) == 0
        self.read(2, area(0))


def build(config: Mapping[str, int] | None = None) -> GoodSegment:
    """Make the segment, with the plain engine: no compiler is involved in testing the checks."""
    builder = _Builder(config or {})
    builder.areas()
    builder.churn()
    builder.served()
    builder.failures()
    builder.other_mm()
    builder.settle()
    return GoodSegment(builder.segment, builder.segment.words.copy())
