# SPDX-License-Identifier: MIT
"""The emulated machine of a replay: its processes, their threads, and the CPUs that run these.

All runs in this process, one call at a time: a CPU that is not in the middle of one is idle, so
nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.errors import ResourceError
from spfemu.layout import MM, PAGE_SHIFT, PAGE_SIZE, VMA
from spfemu.mm.flags import FileOps, Prot, Vm
from spfemu.segment import Segment
from spfemu.trace.maps import Mapping

VM_MAY_ALL = int(Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC)
FILE_BYTES = 1 << 40
"""Length of every file: real lengths are not known, and no program touches what is beyond."""
HEAP, STACK = "[heap]", "[stack]"


@dataclass
class Image:
    """An address space: what a process has between two execs."""

    pid: int
    mm: int
    users: int = 1
    stack: int = 0
    """An address in the initial stack, 0 if that is not known."""
    brk_known: bool = False
    placed: bool = False
    """What execve has mapped is known."""
    touched_brk: int = 0
    """Where the heap ended when it was touched last."""


@dataclass
class Thread:
    """A thread and the CPU that runs it."""

    pid: int
    cpu: int
    image: Image


@dataclass
class Machine:
    """Threads by pid, on a segment; closing ends them all and checks what is left."""

    engine: NativeEngine
    segment: Segment
    threads: dict[int, Thread] = field(default_factory=dict)
    _files: dict[str, int] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _devices: dict[str, tuple[str, int]] = field(default_factory=dict)
    _started: int = 0
    _running: int = -1

    def __post_init__(self) -> None:
        # mm 0 is where CPUs are that run nothing; no program has it
        self.segment.mms["mm_users"][0] = self.segment.geometry.nr_cpus + 1

    # Threads and address spaces.

    def call(self, thread: Thread, name: str, *arguments: int) -> int:
        """Run a kernel function on the thread's CPU."""
        result = self.engine.call(name, self._run(thread), *arguments)
        self.engine.call("cond_resched", self.segment.cpu(thread.cpu))
        assert isinstance(result, int)
        return result

    def _run(self, thread: Thread) -> int:
        """Let the thread's CPU run its address space; returns the CPU's address."""
        cpu = self._resume(thread.cpu)
        if int(self.segment.cpus["mm"][thread.cpu]) != thread.image.mm:
            self.engine.call("switch_mm", cpu, thread.image.mm)
        return cpu

    def _resume(self, index: int) -> int:
        cpu = self.segment.cpu(index)
        if index != self._running:
            if self._running >= 0:
                self.engine.call("cpu_idle_enter", self.segment.cpu(self._running))
            self.engine.call("cpu_idle_exit", cpu)
            self._running = index
        return cpu

    def thread(self, pid: int) -> Thread:
        """Return a thread; one that is not known begins with an empty address space."""
        found = self.threads.get(pid)
        return self._add(pid, Image(pid, self._fresh_mm())) if found is None else found

    def _add(self, pid: int, image: Image) -> Thread:
        index = self._started % self.segment.geometry.nr_cpus
        self._started += 1
        thread = self.threads[pid] = Thread(pid, index, image)
        return thread

    def _fresh_mm(self) -> int:
        mm = self.engine.call("mm_alloc", self._resume(0), self.segment.mm(0))
        assert isinstance(mm, int)
        if mm == 0:
            raise ResourceError("the emulated machine has no mm left")
        return mm

    def clone(self, parent: Thread, child: int) -> None:
        """Make a thread that shares the parent's address space."""
        parent.image.users += 1
        self.engine.call("mmget", parent.image.mm)
        self._add(child, parent.image)

    def fork(self, parent: Thread, child: int) -> int:
        """Make a process with a copy of the parent's; 0 or a negative errno."""
        mm = self.call(parent, "sys_fork")
        if mm < 0:
            return mm
        image = replace(parent.image, pid=child, mm=mm, users=1)
        self._add(child, image)
        return 0

    def execute(self, thread: Thread) -> None:
        """Give a process a fresh address space."""
        mm = self._fresh_mm()
        self._drop(thread)
        thread.image = Image(thread.pid, mm)

    def exit(self, thread: Thread) -> None:
        """End a thread."""
        del self.threads[thread.pid]
        self._drop(thread)

    def _drop(self, thread: Thread) -> None:
        """Leave the address space; with the last thread it is taken down."""
        image = thread.image
        image.users -= 1
        if image.users == 0:
            # CPUs that ran it last may still refer to it
            for index in (self.segment.cpus["mm"] == image.mm).nonzero()[0]:
                self.engine.call("switch_mm", self._resume(int(index)), self.segment.mm(0))
        self.engine.call("mmput", self._resume(thread.cpu), image.mm)

    def finish(self) -> list[str]:
        """End all threads, close the files and return the violations that are found then."""
        for thread in list(self.threads.values()):
            self.exit(thread)
        for file in self._files.values():
            self.engine.call("sys_close", self._resume(0), file)
        for index in range(self.segment.geometry.nr_cpus):
            self.engine.call("rcu_barrier", self._resume(index))
        self.engine.call("cpu_idle_enter", self.segment.cpu(self._running))
        return check_segment(self.segment)

    # Files and maps.

    def file(self, path: str) -> int:
        """Return the file of that name, open for reading and writing; made if it is not there."""
        found = self._files.get(path)
        if found is None:
            file = self.engine.call("sys_create", self._resume(0), FILE_BYTES, FileOps.GENERIC)
            assert isinstance(file, int)
            if file < 0:
                raise ResourceError("the emulated machine has no file left")
            found = self._files[path] = file
            self._names[found] = path
        return found

    def learn(self, mappings: tuple[Mapping, ...]) -> None:
        """Remember on which devices files are, to print maps that name them."""
        for mapping in mappings:
            if mapping.is_file:
                self._devices[mapping.name] = (mapping.device, mapping.inode)

    def place(self, thread: Thread, mappings: tuple[Mapping, ...]) -> None:
        """Fill a fresh address space with what execve has mapped."""
        image = thread.image
        image.placed = True
        mm = self._mm(image)
        below = [m.end for m in mappings if m.name != STACK]
        for mapping in mappings:
            if mapping.name == STACK:
                image.stack = mapping.end - PAGE_SIZE
                below = [m.end for m in mappings if m.end <= mapping.start]
            elif mapping.name == HEAP:
                mm["start_brk"], mm["brk"] = mapping.start, mapping.end
                image.brk_known = True
            self._place(thread, mapping)
        if below:
            mm["mmap_base"] = max(below)

    def _place(self, thread: Thread, mapping: Mapping) -> None:
        file = self.file(mapping.name) if mapping.is_file or is_special(mapping) else 0
        offset = mapping.offset if file else mapping.start
        self.call(
            thread,
            "place_mapping",
            mapping.start,
            mapping.end,
            initial_flags(mapping),
            file,
            offset >> PAGE_SHIFT,
        )

    def set_brk(self, image: Image, brk: int) -> None:
        """Say where an empty heap begins."""
        mm = self._mm(image)
        mm["start_brk"] = mm["brk"] = brk
        image.brk_known = True

    def start_brk(self, image: Image) -> int:
        """Return where the heap begins."""
        return int(self._mm(image)["start_brk"])

    def _mm(self, image: Image) -> Any:
        return self.segment.mms[(image.mm - self.segment.mm(0)) // MM.SIZE]

    def maps(self, image: Image) -> tuple[Mapping, ...]:
        """Return what is mapped now, as /proc/PID/maps has it."""
        return tuple(self._mapping(image, vma) for vma in self._vmas(image))

    def _vmas(self, image: Image) -> Iterator[int]:
        """Yield the index of each VMA."""
        vma = int(self._mm(image)["mmap"])
        while vma:
            index = (vma - self.segment.address["vmas"]) // VMA.SIZE
            yield index
            vma = int(self.segment.vmas["vm_next"][index])

    def _mapping(self, image: Image, index: int) -> Mapping:
        vma = self.segment.vmas[index]
        start, end, vm_flags = int(vma["vm_start"]), int(vma["vm_end"]), int(vma["vm_flags"])
        prot = vm_flags & int(Prot.READ | Prot.WRITE | Prot.EXEC)
        shared = bool(vm_flags & Vm.SHARED)
        name = self._names.get(int(vma["vm_file"]), "")
        if name and not name.startswith("[v"):
            device, inode = self._devices.get(name, ("00:00", 0))
            offset = int(vma["vm_pgoff"]) << PAGE_SHIFT
            return Mapping(start, end, prot, shared, offset, name, device, inode)
        mm = self._mm(image)
        if not name and int(vma["vm_file"]) == 0:
            if start <= int(mm["brk"]) and end >= int(mm["start_brk"]) and image.brk_known:
                name = HEAP
            elif start <= image.stack < end:
                name = STACK
        return Mapping(start, end, prot, shared, 0, name)


def is_special(mapping: Mapping) -> bool:
    """Tell whether it is memory of the kernel's that it gives to programs ([vdso], [vvar])."""
    return mapping.name.startswith("[v")


def initial_flags(mapping: Mapping) -> int:
    """Return the vm_flags of what execve has mapped."""
    vm_flags = mapping.prot | VM_MAY_ALL
    if mapping.shared:
        vm_flags |= int(Vm.SHARED | Vm.MAYSHARE)
    elif mapping.prot & Prot.WRITE:
        vm_flags |= int(Vm.ACCOUNT)
    if mapping.name == STACK:
        vm_flags |= int(Vm.GROWSDOWN)
    elif is_special(mapping):
        vm_flags |= int(Vm.DONTEXPAND | Vm.DONTDUMP)
    return vm_flags
