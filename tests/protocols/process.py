# SPDX-License-Identifier: MIT
"""A process whose threads a script steps: CPUs that run while they are in a call, else idle.

An idle CPU needs no IPI, so a writer that flushes waits only for CPUs inside a call.
"""

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping

import spfemu.mm
from spfemu.checks import check_segment
from spfemu.engines.script import Script
from spfemu.engines.source import KernelFunction, Program, functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.events import ABORT_REASONS, VMA_LOCK_ABORT_REASONS, Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, SWAP_CLUSTER_MAX
from spfemu.mm import worker
from spfemu.mm.direct_io import bio_map_user, bio_release_pages
from spfemu.mm.file_calls import sys_ftruncate, sys_msync, sys_pread, sys_pwrite
from spfemu.mm.file_table import sys_close, sys_create
from spfemu.mm.flags import FileOps, Map, Msync, Prot
from spfemu.mm.fork import exit_mm, sys_fork
from spfemu.mm.gup import get_user_pages_fast, put_user_page
from spfemu.mm.madvise import Madv
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.sched import cpu_idle_enter, cpu_idle_exit
from spfemu.mm.syscalls import (
    sys_madvise,
    sys_mmap,
    sys_mmap_file,
    sys_mprotect,
    sys_munmap,
)
from spfemu.mm.vmscan import shrink_mms
from spfemu.primitives import load
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

RW = int(Prot.READ | Prot.WRITE)
PRIVATE = int(Map.PRIVATE | Map.ANONYMOUS)
FIXED = PRIVATE | int(Map.FIXED)


@kernel
def thread_write(cpu: int, address: int, value: int) -> int:
    cpu_idle_exit(cpu)
    result = user_write(cpu, address, value)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_read(cpu: int, address: int) -> tuple[int, int]:
    cpu_idle_exit(cpu)
    error, value = user_read(cpu, address)
    cpu_idle_enter(cpu)
    return error, value


@kernel
def thread_mmap(cpu: int, address: int, length: int, prot: int, flags: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mmap(cpu, address, length, prot, flags)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_mmap_file(
    cpu: int, address: int, length: int, prot: int, flags: int, file: int, offset: int
) -> int:
    cpu_idle_exit(cpu)
    result = sys_mmap_file(cpu, address, length, prot, flags, file, offset)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_create(cpu: int, size: int, i_fop: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_create(cpu, size, i_fop)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_close(cpu: int, file: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_close(cpu, file)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_pwrite(cpu: int, file: int, offset: int, value: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_pwrite(cpu, file, offset, value)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_pread(cpu: int, file: int, offset: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_pread(cpu, file, offset)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_ftruncate(cpu: int, file: int, size: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_ftruncate(cpu, file, size)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_msync(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_msync(cpu, address, length, Msync.SYNC)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_remove(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_madvise(cpu, address, length, Madv.REMOVE)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_munmap(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_munmap(cpu, address, length)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_mprotect(cpu: int, address: int, length: int, prot: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mprotect(cpu, address, length, prot)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_dontneed(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_madvise(cpu, address, length, Madv.DONTNEED)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_advise(cpu: int, address: int, length: int, advice: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_madvise(cpu, address, length, advice)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_reclaim(cpu: int) -> int:
    """Evict what has not been used since the last time."""
    cpu_idle_exit(cpu)
    result = shrink_mms(cpu, SWAP_CLUSTER_MAX)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_remap(cpu: int, address: int, length: int) -> tuple[int, int]:
    """Unmap a range, map it again, read its first word: nothing old may be there."""
    cpu_idle_exit(cpu)
    error = sys_munmap(cpu, address, length)
    value = 0
    if error == 0:
        sys_mmap(cpu, address, length, RW, FIXED)
        error, value = user_read(cpu, address)
    cpu_idle_enter(cpu)
    return error, value


@kernel
def thread_fork(cpu: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_fork(cpu)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_pin(cpu: int, address: int, nr_pages: int) -> int:
    cpu_idle_exit(cpu)
    result = bio_map_user(cpu, address, nr_pages)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_unpin(cpu: int) -> int:
    cpu_idle_exit(cpu)
    bio_release_pages(cpu)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_get(cpu: int, address: int, nr_pages: int) -> int:
    cpu_idle_exit(cpu)
    result = get_user_pages_fast(cpu, address, nr_pages, 0, cpu + CPU.gup_pages)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_put(cpu: int) -> int:
    cpu_idle_exit(cpu)
    put_user_page(cpu, load(cpu + CPU.gup_pages))
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_exit(cpu: int, mm: int) -> int:
    """Go over to another mm for good."""
    cpu_idle_exit(cpu)
    exit_mm(cpu, mm)
    cpu_idle_enter(cpu)
    return 0


def program(
    protocol: str,
    overrides: tuple[str, ...] = (),
    layer: Mapping[str, KernelFunction] | None = None,
    wrapper: Mapping[str, KernelFunction] | None = None,
    **config: int,
) -> Program:
    """Link the whole kernel with a protocol, the threads' calls, more of them, and overrides.

    `wrapper` is what stands around all that.
    """
    names = [f"spfemu.mm.{m.name}" for m in pkgutil.iter_modules(spfemu.mm.__path__)]
    modules = [importlib.import_module(n) for n in names]
    layers = [functions_of(m) for m in modules if m is not worker]
    layers += [protocol_functions(protocol), functions_of(sys.modules[__name__])]
    # the worker's loop belongs to workloads, which nothing here runs
    loop = functions_of(worker)
    layers.append({name: loop[name] for name in ("cpu_online", "cpu_offline")})
    return link([*layers, layer or {}], config, overrides, [wrapper or {}])


class Process:
    """A segment with its CPUs online and one mm of several threads."""

    def __init__(self, engine: StepEngine, segment: Segment) -> None:
        self.engine = engine
        self.segment = segment
        self.begin()

    def begin(self, seed: int = 1) -> None:
        """Put everything into the initial state, with the CPUs online."""
        engine, segment = self.engine, self.segment
        segment.reset(seed)
        segment.mms["mm_users"] = segment.geometry.nr_cpus
        for index in range(segment.geometry.nr_cpus):
            engine.call("cpu_online", segment.cpu(index))
            engine.call("cpu_idle_enter", segment.cpu(index))

    def call(self, function: str, *arguments: int, cpu: int = 2) -> int | tuple[int, ...]:
        """Run a call of a thread from its begin to its end, alone."""
        return self.engine.call("thread_" + function, self.segment.cpu(cpu), *arguments)

    def map(self, address: int, pages: int, prot: int = RW) -> int:
        """Map pages at an address."""
        assert self.call("mmap", address, pages << 12, prot, FIXED) == address
        return address

    def file(self, pages: int, ops: int = FileOps.GENERIC) -> int:
        """Make a file whose pages are in memory and hold their number plus 100."""
        file = self.call("create", pages << 12, int(ops))
        assert file > 0
        for index in range(pages):
            assert self.call("pwrite", file, index << 12, index + 100) == 0
        return file

    def map_file(self, address: int, file: int, pages: int, flags: int, prot: int = RW) -> int:
        """Map the first pages of a file at an address, shared or private."""
        flags = int(flags | Map.FIXED)
        call = ("mmap_file", address, pages << 12, prot, flags, file, 0)
        assert self.call(*call) == address
        return address

    def write(self, address: int, value: int) -> None:
        """Write from the thread that prepares things."""
        assert self.call("write", address, value) == 0

    def read(self, address: int) -> int:
        """Read from the thread that prepares and checks things."""
        error, value = self.call("read", address)
        assert error == 0
        return value

    def events(self, cpu: int) -> dict[str, int]:
        """Counts of one CPU that are not 0."""
        counts = self.segment.cpus["event"][cpu]
        return {e.name: int(counts[e]) for e in Event if counts[e]}

    def vma_lock(self, cpu: int = 0) -> dict[str, int]:
        """Counts about VMA locks of one CPU, without those of attempts; they have to add up."""
        counts = self.segment.cpus["event"][cpu]
        named = {e.name: int(counts[e]) for e in Event if e.name.startswith("VMA_LOCK_")}
        names = ("SUCCESS", "ABORT", "RETRY", "ACCESS_ERROR")
        assert named.pop("VMA_LOCK_ATTEMPT") == sum(named[f"VMA_LOCK_{name}"] for name in names)
        assert sum(named[e.name] for e in VMA_LOCK_ABORT_REASONS) == named.pop("VMA_LOCK_ABORT")
        return {n.removeprefix("VMA_LOCK_"): count for n, count in named.items() if count}

    def aborts(self, cpu: int = 0) -> dict[str, int]:
        """Abort reasons of one CPU and how often; they have to add up to SPF_ABORT."""
        counts = self.segment.cpus["event"][cpu]
        reasons = {e.name.removeprefix("SPF_ABORT_"): int(counts[e]) for e in ABORT_REASONS}
        assert sum(reasons.values()) == counts[Event.SPF_ABORT]
        return {name: count for name, count in reasons.items() if count}


@contextlib.contextmanager
def running(engine: StepEngine) -> Iterator[Process]:
    """A process of three threads; at the end all invariants have to hold."""
    segment = Segment.create(Geometry(nr_cpus=3))
    yield Process(engine, segment)
    violations = check_segment(segment)
    segment.close()
    assert violations == []


class Threads(Script):
    """A script whose CPUs are threads of a process."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.engine, process.segment)
        self.process = process

    def thread(self, name: str, function: str, *arguments: int):
        """Add a thread that will make a call: A on CPU 0, B on CPU 1, C on CPU 2."""
        cpu = self.process.segment.cpu("ABC".index(name))
        return self.cpu(name, "thread_" + function, cpu, *arguments)
