# SPDX-License-Identifier: MIT
"""What the checks find out about a segment on the way and pass on to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spfemu.checks.findings import Findings, Owners, Slots, Words
from spfemu.layout import (
    ADDRESS_SPACE,
    ANON_VMA,
    ANON_VMA_CHAIN,
    CPU,
    FILE,
    MM,
    PAGE,
    PAGE_SIZE,
    USERFAULTFD_CTX,
    VMA,
)
from spfemu.mm.flags import Vm
from spfemu.segment import Segment


def _no_words() -> Words:
    return np.zeros(0, np.int64)


@dataclass
class Mappings:
    """All entries of one level of the page tables of one mm, by rising address."""

    address: Words = field(default_factory=_no_words)
    entry: Words = field(default_factory=_no_words)

    @classmethod
    def sort(cls, addresses: Words, entries: Words) -> Mappings:
        """Make one of entries in any order."""
        order = np.argsort(addresses)
        return cls(addresses[order], entries[order])

    def lookup(self, addresses: Words) -> Words:
        """Entries of the given addresses, 0 where there is none."""
        if not len(self.address):
            return np.zeros(len(addresses), np.int64)
        position = np.searchsorted(self.address, addresses)
        position[position == len(self.address)] = 0
        return np.where(self.address[position] == addresses, self.entry[position], 0)


class State:
    """One segment being checked.

    Attributes: `vmas`, per mm the indexes of its VMAs by rising address (those that tree or list
    contain); `mappings`, `swapped` and `pmds`, per mm the ptes that map frames, those that hold
    swap entries, and what names their tables; `cached`, how many page caches have each frame as a
    page; `nodes`, which frames are nodes of one; `leaving`, frames that wait in RCU queues after
    having left one; `frame_owners`, `vma_owners`, `anon_vma_owners`,
    `avc_owners`.
    """

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.findings = Findings()
        g, at = segment.geometry, segment.address
        self.mm_slots = Slots("mm", at["mms"], MM.SIZE, g.nr_mms + g.nr_spare_mms)
        self.cpu_slots = Slots("CPU", at["cpus"], CPU.SIZE, g.nr_cpus)
        self.vma_slots = Slots("VMA slot", at["vmas"], VMA.SIZE, g.nr_vmas)
        self.anon_vma_slots = Slots("anon_vma", at["anon_vmas"], ANON_VMA.SIZE, g.nr_anon_vmas)
        self.avc_slots = Slots("anon_vma_chain", at["avcs"], ANON_VMA_CHAIN.SIZE, g.nr_avcs)
        self.file_slots = Slots("open file", at["files"], FILE.SIZE, g.nr_files)
        self.mapping_slots = Slots("file", at["mappings"], ADDRESS_SPACE.SIZE, g.nr_files)
        self.uffd_slots = Slots("userfaultfd", at["uffds"], USERFAULTFD_CTX.SIZE, g.nr_uffds)
        self.page_slots = Slots("struct page", at["vmemmap"], PAGE.SIZE, g.nr_frames)
        self.frame_slots = Slots("frame", at["frames"], PAGE_SIZE, g.nr_frames)
        self.frame_owners = Owners(self.findings, self.frame_slots)
        self.vma_owners = Owners(self.findings, self.vma_slots)
        self.anon_vma_owners = Owners(self.findings, self.anon_vma_slots)
        self.avc_owners = Owners(self.findings, self.avc_slots)
        self.page_links = self.page_slots.indexes(segment.pages["lru"]).tolist()
        self.vmas: dict[int, Words] = {}
        self.mappings: dict[int, Mappings] = {}
        self.swapped: dict[int, Mappings] = {}
        self.cached = np.zeros(g.nr_frames, np.int64)
        self.nodes = np.zeros(g.nr_frames, np.bool_)
        self.leaving: list[int] = []
        self.pmds: dict[int, Mappings] = {}
        self.mms = [int(i) for i in np.flatnonzero(segment.mms["in_use"])]

    def describe_vma(self, index: int) -> str:
        """Name a VMA for messages, by its range, rights and address."""
        vma = self.segment.vmas[index]
        flags = int(vma["vm_flags"])
        rights = "".join(
            letter if flags & bit else "-"
            for letter, bit in (("r", Vm.READ), ("w", Vm.WRITE), ("x", Vm.EXEC))
        )
        start, end = int(vma["vm_start"]), int(vma["vm_end"])
        return f"VMA [{start:#x}, {end:#x}) {rights} at {self.vma_slots.address(index):#x}"
