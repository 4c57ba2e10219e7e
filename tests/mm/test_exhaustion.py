# SPDX-License-Identifier: MIT
"""Each resource runs out: the right error, nothing broken, and all of it can be had again.

Two CPUs take turns, and nobody waits for a grace period in between: what one of them has kept or
freed the other one finds.
"""

from collections.abc import Callable

import pytest
from mm_machine import Machine
from whole_kernel import KernelMachine, kernel_engine

from spfemu.checks import check_segment
from spfemu.layout import CPU, PAGE_SIZE
from spfemu.mm.flags import PMD_SIZE, Errno, FileOps, Foll, Madv, Map, Mremap, Prot
from spfemu.segment import Geometry, Segment

RW = int(Prot.READ | Prot.WRITE)
PRIVATE = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
SHARED = int(Map.SHARED | Map.ANONYMOUS | Map.FIXED)
AREA = 1 << 40
ELSEWHERE = 1 << 41
PROTOCOLS = ["classic", "spf", "vma_lock", "vma_refcount"]
FRAMES = 200
MORE = 4000
"""More of everything than there is."""


class Short(KernelMachine):
    """A machine that is short of something."""

    def __init__(self, protocol: str, geometry: Geometry) -> None:
        Machine.__init__(self, kernel_engine("native", protocol), Segment.create(geometry))
        self.reset()

    def map(self, address: int, length: int, flags: int = PRIVATE, cpu: int = 0) -> int:
        return int(self.on(cpu, "sys_mmap", address, length, RW, flags))

    def read(self, address: int, cpu: int) -> int:
        error, value = self.on(cpu, "user_read", address)
        return int(error) or int(value)

    def unmap_all(self) -> None:
        """Unmap from CPU 1."""
        assert self.on(1, "sys_munmap", AREA, ELSEWHERE - AREA) == 0

    def broken(self) -> list[str]:
        """What does not hold; nobody is waited for."""
        return check_segment(self.segment)


class Resource:
    """What runs out: with what geometry, how it is taken and given back, what error it gives."""

    geometry = Geometry(nr_cpus=2)
    error = Errno.ENOMEM

    def begin(self, machine: Short) -> None:
        """Prepare a round."""

    def take(self, machine: Short, index: int, cpu: int) -> int:
        """Take some; a negative errno if there is none."""
        raise NotImplementedError

    def check(self, machine: Short, taken: list[int]) -> None:
        """See that what was taken is what it should be, and what else fails by now."""

    def give(self, machine: Short, taken: list[int]) -> None:
        """Give all back."""
        machine.unmap_all()


class Frames(Resource):
    """Frames for anonymous pages."""

    geometry = Geometry(nr_cpus=2, nr_frames=FRAMES)

    def begin(self, machine: Short) -> None:
        assert machine.map(AREA, MORE * PAGE_SIZE) == AREA

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return int(machine.on(cpu, "user_write", AREA + index * PAGE_SIZE, index + 1))

    def check(self, machine: Short, taken: list[int]) -> None:
        for index in range(len(taken)):
            assert machine.read(AREA + index * PAGE_SIZE, 0) == index + 1
        new = AREA + len(taken) * PAGE_SIZE
        populate = int(Madv.POPULATE_WRITE)
        assert machine.on(0, "sys_madvise", new, PAGE_SIZE, populate) == -Errno.ENOMEM
        pages = machine.cpu(0) + CPU.gup_pages
        assert machine.on(0, "get_user_pages_fast", new, 1, int(Foll.WRITE), pages) == -Errno.ENOMEM
        assert machine.on(0, "sys_mlock", new, PAGE_SIZE) == -Errno.EAGAIN
        assert machine.on(0, "sys_munlock", new, PAGE_SIZE) == 0


class SwapSlots(Frames):
    """Frames and swap slots."""

    geometry = Geometry(nr_cpus=2, nr_frames=FRAMES, nr_swap=100)

    def check(self, machine: Short, taken: list[int]) -> None:
        """One free frame is enough to bring back each page in turn."""
        assert machine.read(AREA, 0) == -Errno.ENOMEM
        last = len(taken) - 1
        dontneed = int(Madv.DONTNEED)
        assert machine.on(0, "sys_madvise", AREA + last * PAGE_SIZE, PAGE_SIZE, dontneed) == 0
        for index in range(last):
            assert machine.read(AREA + index * PAGE_SIZE, index % 2) == index + 1


class Copies(Frames):
    """Frames for copies of pages that a child shares."""

    geometry = Geometry(nr_cpus=2, nr_frames=FRAMES, nr_spare_mms=1, nr_avcs=8)
    PAGES = 120

    def begin(self, machine: Short) -> None:
        super().begin(machine)
        for index in range(self.PAGES):
            assert machine.on(0, "user_write", AREA + index * PAGE_SIZE, index) == 0
        self.child = machine.on(0, "sys_fork")
        assert self.child > 0

    def check(self, machine: Short, taken: list[int]) -> None:
        assert len(taken) < self.PAGES

    def give(self, machine: Short, taken: list[int]) -> None:
        """End the child; the parent is as it was."""
        machine.on(1, "mmput", self.child)
        machine.unmap_all()


class Tables(Resource):
    """Frames for page tables: what is mapped is the zero page."""

    geometry = Geometry(nr_cpus=2, nr_frames=100)

    def begin(self, machine: Short) -> None:
        assert machine.map(AREA, MORE * PMD_SIZE) == AREA

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return machine.read(AREA + index * PMD_SIZE, cpu)

    def check(self, machine: Short, taken: list[int]) -> None:
        length = 8 * PMD_SIZE
        move = int(Mremap.MAYMOVE | Mremap.FIXED)
        assert machine.on(0, "sys_mremap", AREA, length, length, move, ELSEWHERE) == -Errno.ENOMEM


class PageCache(Resource):
    """Frames for pages of a file, and the nodes of its tree."""

    geometry = Geometry(nr_cpus=2, nr_frames=FRAMES)

    def begin(self, machine: Short) -> None:
        self.file = machine.on(0, "sys_create", 0, int(FileOps.GENERIC))

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return int(machine.on(cpu, "sys_pwrite", self.file, index * PAGE_SIZE, index))

    def check(self, machine: Short, taken: list[int]) -> None:
        assert machine.on(0, "sys_fork") == -Errno.ENOMEM

    def give(self, machine: Short, taken: list[int]) -> None:
        assert machine.on(1, "sys_close", self.file) == 0


class Vmas(Resource):
    """VMAs, each apart from the others."""

    geometry = Geometry(nr_cpus=2, nr_vmas=40)

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return machine.map(AREA + index * 8 * PAGE_SIZE, 4 * PAGE_SIZE, cpu=cpu)

    def check(self, machine: Short, taken: list[int]) -> None:
        assert len(taken) == 40
        inside = AREA + PAGE_SIZE
        for call in ("sys_munmap", "sys_mlock"):
            assert machine.on(1, call, inside, PAGE_SIZE) == -Errno.ENOMEM
        assert machine.on(1, "sys_mprotect", inside, PAGE_SIZE, 0) == -Errno.ENOMEM
        dontfork = int(Madv.DONTFORK)
        assert machine.on(1, "sys_madvise", inside, PAGE_SIZE, dontfork) == -Errno.EAGAIN
        # what needs none goes on
        assert machine.on(0, "user_write", inside, 7) == 0
        assert machine.on(1, "sys_mprotect", AREA, 4 * PAGE_SIZE, int(Prot.READ)) == 0


class AnonVmas(Resource):
    """anon_vmas, for VMAs that are written to first."""

    geometry = Geometry(nr_cpus=2, nr_anon_vmas=20)

    def take(self, machine: Short, index: int, cpu: int) -> int:
        address = AREA + index * 8 * PAGE_SIZE
        assert machine.map(address, PAGE_SIZE, cpu=cpu) == address
        return int(machine.on(cpu, "user_write", address, index))

    def check(self, machine: Short, taken: list[int]) -> None:
        assert len(taken) == 20
        # reading needs none
        assert machine.read(AREA + len(taken) * 8 * PAGE_SIZE, 1) == 0


class Families(Resource):
    """Children of children, who inherit more and more anon_vmas."""

    geometry = Geometry(nr_cpus=2, nr_spare_mms=12, nr_avcs=20)

    def begin(self, machine: Short) -> None:
        assert machine.map(AREA, PAGE_SIZE) == AREA
        assert machine.on(0, "user_write", AREA, 1) == 0

    def take(self, machine: Short, index: int, cpu: int) -> int:
        child = machine.on(0, "sys_fork")
        if child > 0:
            machine.on(0, "switch_mm", child)
            # a page of its own, and so an anon_vma that is not reused
            assert machine.on(0, "user_write", AREA, index) == 0
        return int(child)

    def check(self, machine: Short, taken: list[int]) -> None:
        assert 2 < len(taken) < 12

    def give(self, machine: Short, taken: list[int]) -> None:
        machine.on(0, "switch_mm", machine.segment.mm(0))
        for child in taken:
            machine.on(1, "mmput", child)
        machine.unmap_all()


class Mms(Resource):
    """mm_structs."""

    geometry = Geometry(nr_cpus=2, nr_spare_mms=5)

    def begin(self, machine: Short) -> None:
        assert machine.map(AREA, PAGE_SIZE) == AREA

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return int(machine.on(cpu, "sys_fork"))

    def check(self, machine: Short, taken: list[int]) -> None:
        assert len(taken) == 5

    def give(self, machine: Short, taken: list[int]) -> None:
        for child in taken:
            machine.on(1, "mmput", child)
        machine.unmap_all()


class Files(Resource):
    """Open files."""

    geometry = Geometry(nr_cpus=2, nr_files=6)
    error = Errno.ENFILE

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return int(machine.on(cpu, "sys_create", PAGE_SIZE, int(FileOps.GENERIC)))

    def check(self, machine: Short, taken: list[int]) -> None:
        assert len(taken) == 6
        assert machine.map(AREA, PAGE_SIZE, SHARED) == -Errno.ENOMEM

    def give(self, machine: Short, taken: list[int]) -> None:
        for file in taken:
            assert machine.on(1, "sys_close", file) == 0


class SharedMappings(Resource):
    """The files behind shared anonymous memory, which are freed after a grace period."""

    geometry = Geometry(nr_cpus=2, nr_files=6)

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return machine.map(AREA + index * 8 * PAGE_SIZE, PAGE_SIZE, SHARED, cpu)

    def check(self, machine: Short, taken: list[int]) -> None:
        assert len(taken) == 6


class Contexts(Resource):
    """userfaultfd contexts."""

    geometry = Geometry(nr_cpus=2, nr_uffds=3)
    error = Errno.EMFILE

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return int(machine.on(cpu, "sys_userfaultfd"))

    def give(self, machine: Short, taken: list[int]) -> None:
        for ctx in taken:
            machine.on(1, "userfaultfd_release", ctx)


class Notifiers(Resource):
    """MMU notifiers."""

    geometry = Geometry(nr_cpus=2, nr_notifiers=3)

    def take(self, machine: Short, index: int, cpu: int) -> int:
        return int(machine.on(cpu, "mmu_notifier_register", machine.segment.mm(0)))

    def give(self, machine: Short, taken: list[int]) -> None:
        for subscription in taken:
            machine.on(1, "mmu_notifier_unregister", subscription)


class HugePages(Resource):
    """Huge frames, for collapses."""

    geometry = Geometry(nr_cpus=2, nr_frames=100 + 2 * 512, nr_huge=2)

    def begin(self, machine: Short) -> None:
        assert machine.map(AREA, 8 * PMD_SIZE) == AREA

    def take(self, machine: Short, index: int, cpu: int) -> int:
        address = AREA + index * PMD_SIZE
        assert machine.on(cpu, "user_write", address, index + 1) == 0
        return int(machine.on(cpu, "sys_madvise", address, PMD_SIZE, int(Madv.COLLAPSE)))

    def check(self, machine: Short, taken: list[int]) -> None:
        assert len(taken) == 2
        for index in range(3):
            assert machine.read(AREA + index * PMD_SIZE, 1) == index + 1


RESOURCES = {made.__name__: made for made in (
    Frames, SwapSlots, Copies, Tables, PageCache, Vmas, AnonVmas, Families, Mms, Files,
    SharedMappings, Contexts, Notifiers, HugePages,
)}  # fmt: skip


def use_up(take: Callable[[int], int]) -> tuple[list[int], int]:
    """Take until an error; what was taken, and the error."""
    taken: list[int] = []
    while (result := take(len(taken))) >= 0:
        taken.append(result)
        assert len(taken) < MORE
    return taken, result


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", RESOURCES)
def test_it_runs_out_and_can_be_had_again(protocol: str, name: str) -> None:
    resource: Resource = RESOURCES[name]()
    machine = Short(protocol, resource.geometry)
    found = []
    for _ in range(3):
        resource.begin(machine)
        taken, error = use_up(lambda index: resource.take(machine, index, index % 2))
        assert error == -resource.error
        assert machine.broken() == []
        resource.check(machine, taken)
        assert machine.broken() == []
        resource.give(machine, taken)
        assert machine.broken() == []
        found.append(len(taken))
    assert found[0] > 1
    assert found == [found[0]] * 3
    machine.close()
