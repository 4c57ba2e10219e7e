# SPDX-License-Identifier: MIT
"""Both executors with the same address space: the emulated one is made like the real one."""

from __future__ import annotations

import errno
import importlib
import pkgutil
import resource
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

import spfemu.mm
from spfemu.engines.native import NativeEngine
from spfemu.engines.source import Program as KernelProgram
from spfemu.engines.source import functions_of, link
from spfemu.errors import ResourceError, UsageError, WorkerDiedError
from spfemu.fidelity import emulated, host, interpreter, known
from spfemu.fidelity.channel import (
    FILE_SIZES,
    MAX_FOREIGN,
    Channel,
    ChannelMemory,
    Record,
)
from spfemu.fidelity.executor import (
    HANG_SECONDS,
    EmulatedExecutor,
    ExecutorDied,
    HostExecutor,
    read_maps,
)
from spfemu.fidelity.executor import Mapping as Mapped
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.known import KnownDifference
from spfemu.fidelity.program import UNMAP_ALL, WINDOW_PAGES, Bases, Operation, Program, Window
from spfemu.host import calls
from spfemu.layout import PAGE_SIZE, WORD
from spfemu.measure import build
from spfemu.mm.flags import RLIM_INFINITY, TASK_SIZE, FileOps, Map, Vm
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

ARENAS = tuple((1 << 44) + (i << 40) for i in range(16))
GUARD_PAGES = 2
"""Pages left free behind the heap's window: the heap may not grow up to another mapping."""
GEOMETRY = Geometry(
    nr_frames=1024,
    nr_vmas=8192,
    nr_anon_vmas=2048,
    nr_spare_mms=1,
    nr_avcs=16384,
    nr_files=512,
)
POISON = 0x6B6B6B6B6B6B6B6B
"""What free frames hold before a program runs (include/linux/poison.h: POISON_FREE)."""
THREADS = 2
"""mm_users: with one thread, faults would not be speculative and VMAs not freed through RCU."""
WORN_SHARE = 4
"""Part of RLIMIT_MEMLOCK that a process may have counted wrongly before it is replaced."""
WITHOUT_MAPPINGS = ("bare",)
"""Protocols that let every access succeed."""
_GUARD = int(Map.SHARED | Map.ANONYMOUS | Map.FIXED)


def emulated_program(
    protocol: str, overrides: Sequence[str], config: Mapping[str, int]
) -> KernelProgram:
    """Return what the emulated side runs; raises UsageError, KernelSourceError."""
    build.choose("protocol", protocol, build.protocols())
    if protocol in WITHOUT_MAPPINGS:
        raise UsageError(f"'{protocol}' takes no notice of mappings: there is nothing to compare")
    names = [m.name for m in pkgutil.iter_modules(spfemu.mm.__path__) if m.name != "worker"]
    modules = [importlib.import_module(f"spfemu.mm.{name}") for name in names]
    layers = [functions_of(m) for m in modules]
    layers += [
        protocol_functions(protocol),
        functions_of(interpreter),
        functions_of(emulated),
    ]
    program = link(layers, config, overrides)
    return build.reachable(program, ("serve", "map_foreign", "sys_create", "cpu_idle_exit"))


def host_program() -> KernelProgram:
    """Return what the side of the real kernel runs."""
    modules = [importlib.import_module(f"spfemu.mm.{name}") for name in ("vmstat", "latency")]
    program = link([functions_of(m) for m in (*modules, calls, interpreter, host)], {})
    return build.reachable(program, ("serve_host",))


@dataclass(frozen=True)
class Streams:
    """What both sides observed; `stopped` says why the emulator did not come to the end."""

    operations: Program
    host: NDArray[np.int64]
    emulated: NDArray[np.int64]
    stopped: str = ""

    @property
    def equal(self) -> bool:
        """Tell whether there is no difference."""
        return not self.stopped and np.array_equal(self.host, self.emulated)


class Pair:
    """Runs programs on both sides.  Leaving the context ends the processes."""

    def __init__(
        self,
        protocol: str = "spf",
        overrides: Sequence[str] = (),
        config: Mapping[str, int] | None = None,
    ) -> None:
        self.version = known.followed_version()
        config = {"CONFIG_LINUX_VERSION": self.version, **(config or {})}
        program = emulated_program(protocol, overrides, config)
        self.engine = NativeEngine(program)
        self.segment = Segment.create(GEOMETRY)
        self.host = HostExecutor(NativeEngine(host_program()))
        self.emulated = EmulatedExecutor(self.engine, self.segment.cpu(0))
        self.bases: Bases = {}
        self.differences: tuple[KnownDifference, ...] = ()
        """Known differences from the kernel of this machine."""
        self._initial: NDArray[np.int64] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start both processes."""
        with ExitStack() as stack:
            stack.callback(self.segment.close)
            stack.enter_context(self.host)
            stack.enter_context(self.emulated)
            self._prepare()
            self.differences = known.differences(same_task_size=self._has_task_size())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End both processes."""
        self._stack.close()

    def renew(self) -> None:
        """Go on with another real process, and so with other addresses."""
        self.host.kill()
        self.host.start()
        self._prepare()

    @property
    def is_worn(self) -> bool:
        """Tell whether the real process has memory accounts that are not what they were at first.

        Linux 6.18 counts the pages of a locked mapping once more when mremap moves it with
        MREMAP_DONTUNMAP, and never takes that back; at some point the limit is reached.
        """
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return 0 <= limit < WORN_SHARE * self.host.locked_bytes()

    def _prepare(self) -> None:
        """Make the emulated machine like the real process, which has just started."""
        foreign, self.bases = self._arrange()
        self.segment.reset()
        self._mirror(foreign)
        for channel in (self.host.channel, self.emulated.channel):
            self._describe(channel, foreign)
        # faults in what both sides use, so that it does not count
        self.run([Operation(Kind.WRITE), Operation(Kind.READ)])

    def counts(self) -> NDArray[np.int64]:
        """Return the events that the emulated CPU counted in the last run."""
        events: NDArray[np.int64] = self.segment.cpus["event"][0]
        return events.copy()

    def run(self, operations: Program, hang_seconds: float | None = None) -> Streams:
        """Run operations on both sides from a fresh start; the streams hold until the next run.

        The last thing run, and compared, is that everything is unmapped.  Raises WorkerDiedError
        if the real kernel's side dies.
        """
        self._restore()
        operations = [*operations, UNMAP_ALL]
        words = [word for o in operations for word in o.words(self.bases)]
        if self.emulated.pid == 0:
            self.emulated.start()
        self.host.send(words)
        self.emulated.send(words)
        stopped = ""
        try:
            observed = self.emulated.receive(hang_seconds or HANG_SECONDS)
        except ExecutorDied as death:
            stopped = str(death)
            observed = self.emulated.channel.stream()
        return Streams(operations, self._host_receive(), observed, stopped)

    def _host_receive(self) -> NDArray[np.int64]:
        try:
            return self.host.receive(HANG_SECONDS)
        except ExecutorDied as death:
            raise WorkerDiedError(f"the process on the real kernel {death}") from death

    def _host_call(self, operation: Operation, bases: Bases) -> int:
        """Run one call on the real kernel."""
        self.host.send(operation.words(bases))
        return int(self._host_receive()[Record.RESULT // WORD])

    # The host's address space decides; the emulated one is made like it.

    def _arrange(self) -> tuple[list[Mapped], dict[Window, int]]:
        """Find places for the windows; returns the foreign mappings and the windows' bases."""
        top = self._find_top()
        foreign = read_maps(self.host.pid)
        bases = {
            Window.ABSOLUTE: 0,
            Window.LOW: self._lowest_address(),
            Window.HEAP: self.host.channel[Channel.START_BRK],
            Window.TOP: top - WINDOW_PAGES[Window.TOP] * PAGE_SIZE,
        }
        for arena in ARENAS:
            if _is_free(foreign, arena, WINDOW_PAGES[Window.ARENA] * PAGE_SIZE):
                bases[Window.ARENA] = arena
                break
        for window, pages in WINDOW_PAGES.items():
            size = (pages + (GUARD_PAGES if window is Window.HEAP else 0)) * PAGE_SIZE
            if window not in bases or not _is_free(foreign, bases[window], size):
                raise ResourceError(f"no room for the window '{window}' in this address space")
        return foreign, bases

    def _lowest_address(self) -> int:
        """Return the address to which the kernel lifts lower hints (mmap_min_addr)."""
        bases = {Window.ABSOLUTE: 0}
        lowest = self._host_call(
            Operation(
                Kind.MMAP,
                address=PAGE_SIZE,
                length=PAGE_SIZE,
                flags=int(Map.PRIVATE | Map.ANONYMOUS),
            ),
            bases,
        )
        self._host_call(Operation(Kind.MUNMAP, address=lowest, length=PAGE_SIZE), bases)
        return lowest

    def _has_task_size(self) -> bool:
        """Tell whether user space ends where the emulated one does."""
        beyond = Operation(Kind.MUNMAP, address=TASK_SIZE, length=PAGE_SIZE)
        return self._host_call(beyond, {Window.ABSOLUTE: 0}) == -errno.EINVAL

    def _find_top(self) -> int:
        """Return the end of the highest free range that has room for the window.

        What is free above it is occupied, so that mappings without a hint go there first.  All
        of that is shared: a mapping of a program cannot be merged with it.
        """
        bases = {Window.ABSOLUTE: 0}
        needed = (WINDOW_PAGES[Window.TOP] + GUARD_PAGES) * PAGE_SIZE
        anywhere = Operation(Kind.MMAP, length=PAGE_SIZE, flags=int(Map.PRIVATE | Map.ANONYMOUS))
        for _ in range(MAX_FOREIGN):
            highest = self._host_call(anywhere, bases)
            if highest < 0:
                break
            self._host_call(Operation(Kind.MUNMAP, address=highest, length=PAGE_SIZE), bases)
            below = [m.end for m in read_maps(self.host.pid) if m.end <= highest]
            lowest = below[-1] if below else 0
            fits = highest - lowest >= needed
            start = highest if fits else lowest
            length = highest + PAGE_SIZE - start
            guard = Operation(Kind.MMAP, address=start, length=length, flags=_GUARD)
            self._host_call(guard, bases)
            if fits:
                return highest
        raise ResourceError("no room for mappings without a hint in this address space")

    def _mirror(self, foreign: Sequence[Mapped]) -> None:
        """Give the emulated mm the same limits, and mappings where the real process has some."""
        segment = self.segment
        mm = segment.mms[0]
        mm["mm_users"] = THREADS
        mm["mmap_base"] = self.bases[Window.TOP] + (WINDOW_PAGES[Window.TOP] + 1) * PAGE_SIZE
        mm["mmap_min_addr"] = self.bases[Window.LOW]
        mm["start_brk"] = mm["brk"] = self.bases[Window.HEAP]
        for name, limit in (
            ("rlimit_memlock", resource.RLIMIT_MEMLOCK),
            ("rlimit_stack", resource.RLIMIT_STACK),
        ):
            soft = resource.getrlimit(limit)[0]
            mm[name] = RLIM_INFINITY if soft == resource.RLIM_INFINITY else soft
        cpu = segment.cpu(0)
        self.engine.call("cpu_idle_exit", cpu)
        for mapping in foreign:
            flags = int(Vm.DONTEXPAND | Vm.READ if mapping.accessible else Vm.DONTEXPAND)
            if self.engine.call("map_foreign", cpu, mapping.start, mapping.end, flags) != 0:
                raise ResourceError(f"no room for a mapping at {mapping.start:#x}")
        files = [
            cast("int", self.engine.call("sys_create", cpu, size, FileOps.SHMEM))
            for size in FILE_SIZES
        ]
        self.emulated.channel.write(Channel.FILES, [0, *files])
        # frames behind the zero page and the top-level table are not in use yet
        used = segment.address["frames"] - segment.base + 2 * PAGE_SIZE
        self._initial = segment.words[: used // WORD].copy()

    def _restore(self) -> None:
        """Put the emulated machine into the state in which no program has run."""
        assert self._initial is not None
        used = len(self._initial)
        self.segment.words[:used] = self._initial
        self.segment.words[used:] = POISON

    def _describe(self, channel: ChannelMemory, foreign: Sequence[Mapped]) -> None:
        """Tell an executor where things are."""
        if len(foreign) >= MAX_FOREIGN:
            raise ResourceError(f"the executor has {len(foreign)} mappings of its own")
        channel[Channel.START_BRK] = self.bases[Window.HEAP]
        channel[Channel.MM] = self.segment.mm(0)
        channel.write(Channel.FILE_SIZES, [0, *FILE_SIZES])
        channel.write(Channel.FOREIGN, [*(m.end for m in foreign), 0])
        windows = sorted((self.bases[window], pages) for window, pages in WINDOW_PAGES.items())
        channel.write(Channel.WINDOWS, [word for window in windows for word in window])


def _is_free(mappings: Sequence[Mapped], start: int, size: int) -> bool:
    return all(m.end <= start or m.start >= start + size for m in mappings)
