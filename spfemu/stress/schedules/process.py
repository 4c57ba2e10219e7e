# SPDX-License-Identifier: MIT
"""A process whose threads a script steps: CPUs that run while they are in a call, else idle."""

import contextlib
import importlib
import pkgutil
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import spfemu.mm
from spfemu.checks import check_segment
from spfemu.engines.script import STEPS_MAX, Memory, Script, ScriptCpu
from spfemu.engines.source import KernelFunction, Program, functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.events import ABORT_REASONS, VMA_LOCK_ABORT_REASONS, Event
from spfemu.layout import PAGE, PAGE_SIZE
from spfemu.measure.build import all_names
from spfemu.mm import worker
from spfemu.mm.flags import FileOps, Map
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment
from spfemu.stress import oracle_layers
from spfemu.stress.schedules import calls, uffd_calls
from spfemu.stress.schedules.calls import FIXED, RW


def program(
    protocol: str,
    overrides: tuple[str, ...] = (),
    layer: Mapping[str, KernelFunction] | None = None,
    wrapper: Mapping[str, KernelFunction] | None = None,
    oracles: Sequence[types.ModuleType] = (),
    **config: int,
) -> Program:
    """Link the whole kernel with a protocol, the threads' calls, more of them, and overrides.

    `oracles` stand around all that, and `wrapper` around them.
    """
    names = [f"spfemu.mm.{m.name}" for m in pkgutil.iter_modules(spfemu.mm.__path__)]
    modules = [importlib.import_module(n) for n in names]
    layers = [functions_of(m) for m in modules if m is not worker]
    layers += [protocol_functions(protocol), functions_of(calls), functions_of(uffd_calls)]
    # the worker's loop belongs to workloads, which nothing here runs
    loop = functions_of(worker)
    layers.append({name: loop[name] for name in ("cpu_online", "cpu_offline")})
    wrappers = [*(oracle_layers(oracles) if oracles else []), wrapper or {}]
    return link([*layers, layer or {}], config, overrides, wrappers, all_names())


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

    def call(self, function: str, *arguments: int, cpu: int = 2) -> Any:
        """Run a call of a thread from its begin to its end, alone; returns what it returns."""
        return self.engine.call("thread_" + function, self.segment.cpu(cpu), *arguments)

    def map(self, address: int, pages: int, prot: int = RW) -> int:
        """Map pages at an address."""
        assert self.call("mmap", address, pages << 12, prot, FIXED) == address
        return address

    def file(self, pages: int, ops: int = FileOps.GENERIC) -> int:
        """Make a file whose pages are in memory and hold their number plus 100."""
        file: int = self.call("create", pages << 12, int(ops))
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

    def in_child(self, child: int, function: str, *arguments: int) -> Any:
        """Run a call of a thread in a forked child, on the CPU that prepares things."""
        self.engine.call("switch_mm", self.segment.cpu(2), child)
        result = self.call(function, *arguments)
        self.engine.call("switch_mm", self.segment.cpu(2), self.segment.mm(0))
        return result

    def child_exits(self, child: int) -> None:
        """End a child."""
        self.engine.call("switch_mm", self.segment.cpu(2), child)
        assert self.call("exit", self.segment.mm(0)) == 0

    def entry(self, address: int) -> int:
        """Page table entry at an address, 0 if there is none."""
        entry = self.engine.call("lookup_pte", self.segment.mm(0), address)
        assert isinstance(entry, int)
        return entry

    def referenced_word(self, cpu: int) -> int:
        """First word of the frame that a CPU has taken a reference to or pinned."""
        page = int(self.segment.cpus["gup_pages"][cpu][0])
        number = (page - self.segment.address["vmemmap"]) // PAGE.SIZE
        return self.segment.word(self.segment.address["frames"] + number * PAGE_SIZE)

    def write(self, address: int, value: int) -> None:
        """Write from the thread that prepares things."""
        assert self.call("write", address, value) == 0

    def read(self, address: int) -> int:
        """Read from the thread that prepares and checks things."""
        error, value = self.call("read", address)
        assert error == 0
        return int(value)

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

    def __init__(
        self, process: Process, *, steps_max: int = STEPS_MAX, memory: Memory = Memory.SC
    ) -> None:
        super().__init__(process.engine, process.segment, steps_max=steps_max, memory=memory)
        self.process = process

    def thread(self, name: str, function: str, *arguments: int) -> ScriptCpu:
        """Add a thread that will make a call: A on CPU 0, B on CPU 1, C on CPU 2."""
        cpu = self.process.segment.cpu("ABC".index(name))
        return self.cpu(name, "thread_" + function, cpu, *arguments)
