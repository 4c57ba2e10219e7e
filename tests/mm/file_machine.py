# SPDX-License-Identifier: MIT
"""What the tests of files share: two processes' worth of CPUs, files, shorter words."""

from __future__ import annotations

from typing import Any

from mm_machine import Machine
from whole_kernel import KernelMachine, kernel_engine

from spfemu.layout import ADDRESS_SPACE, FILE, PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.flags import PTE_ADDR_MASK, FileOps, Map, Prot
from spfemu.segment import Geometry, Segment

BASE = 0x1000_0000
READ, WRITE = int(Prot.READ), int(Prot.WRITE)
RW = READ | WRITE
SHARED = int(Map.SHARED | Map.FIXED)
PRIVATE = int(Map.PRIVATE | Map.FIXED)
SHARED_ANON = int(Map.SHARED | Map.ANONYMOUS | Map.FIXED)
KINDS = {"file": FileOps.GENERIC, "shmem": FileOps.SHMEM}


def page(index: int) -> int:
    """Address of page `index` of the area where the tests map."""
    return BASE + index * PAGE_SIZE


class FileMachine(KernelMachine):
    """A segment with one mm that both CPUs run, and spare ones for forks."""

    def __init__(
        self, engine: str = "native", protocol: str = "classic", scheme: str = "rcu", **given: int
    ) -> None:
        geometry = Geometry(**{"nr_cpus": 2, "nr_spare_mms": 3, **given})
        kernel = kernel_engine(engine, protocol, scheme)
        Machine.__init__(self, kernel, Segment.create(geometry))
        self.reset()

    def create(self, pages: int = 8, kind: str = "file") -> int:
        """Make a file; returns the open file."""
        file = self.on(0, "sys_create", pages * PAGE_SIZE, int(KINDS[kind]))
        assert file > 0
        return int(file)

    def map(
        self,
        file: int,
        first: int = 0,
        pages: int = 8,
        *,
        prot: int = RW,
        flags: int = SHARED,
        at: int = 0,
        cpu: int = 0,
    ) -> int:
        """Map `pages` of a file from page `first` on at page `at`; returns the address."""
        address = page(at)
        result = self.on(
            cpu,
            "sys_mmap_file",
            address,
            pages * PAGE_SIZE,
            prot,
            flags,
            file,
            first * PAGE_SIZE,
        )
        assert result == address
        return address

    def unmap(self, at: int = 0, pages: int = 8, cpu: int = 0) -> None:
        assert self.on(cpu, "sys_munmap", page(at), pages * PAGE_SIZE) == 0

    def write(self, at: int, value: int, cpu: int = 0) -> int:
        return int(self.on(cpu, "user_write", page(at), value))

    def read(self, at: int, cpu: int = 0) -> tuple[int, int]:
        return self.on(cpu, "user_read", page(at))  # type: ignore[no-any-return]

    def fork(self, cpu: int = 0) -> int:
        child = self.on(cpu, "sys_fork")
        assert child > 0
        return int(child)

    def file(self, address: int) -> Any:
        """A FILE as a record."""
        return self.segment.files[(address - self.segment.address["files"]) // FILE.SIZE]

    def mapping(self, address: int) -> Any:
        """The ADDRESS_SPACE that a FILE is open on, as a record."""
        offset = int(self.file(address)["f_mapping"]) - self.segment.address["mappings"]
        return self.segment.mappings[offset // ADDRESS_SPACE.SIZE]

    def vmas(self, mm: int = 0) -> list[Any]:
        """All VMAs of an mm by address, as records."""
        vmas = self.segment.vmas
        found = []
        address = int(self.segment.mms["mmap"][mm])
        while address:
            found.append(vmas[(address - self.segment.address["vmas"]) // vmas.dtype.itemsize])
            address = int(found[-1]["vm_next"])
        return found

    def ranges(self, mm: int = 0) -> list[tuple[int, int, int]]:
        """First page, page behind the last and page offset of each VMA."""
        return [
            (
                (int(v["vm_start"]) - BASE) >> PAGE_SHIFT,
                (int(v["vm_end"]) - BASE) >> PAGE_SHIFT,
                int(v["vm_pgoff"]),
            )
            for v in self.vmas(mm)
        ]

    def entry(self, at: int) -> int:
        """The pte of a page, 0 if there is none or no table."""
        slot = int(self.call("find_pmd", self.segment.mm(0), page(at)))
        if slot == 0 or self.segment.word(slot) == 0:
            return 0
        return self.segment.word(int(self.on(0, "hardware_walk_pte", page(at))))

    def frame(self, at: int) -> Any:
        """PAGE of the frame mapped at a page, as a record."""
        offset = (self.entry(at) & PTE_ADDR_MASK) - self.segment.address["frames"]
        return self.segment.pages[offset >> PAGE_SHIFT]
