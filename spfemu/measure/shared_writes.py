# SPDX-License-Identifier: MIT
"""What a fault, or a mapping call, writes to lines that other CPUs use, counted step by step.

A write fault on a fresh page is stepped through by the stepped engine, in a process of two threads
whose tables, anon_vma and frame lists are ready.  Every store and atomic update counts whose
address lies neither in the CPU's own block nor in the new frame or its struct page; an update that
fails counts too, because it takes the line all the same.  So is an
mmap among others, for what a writer pays for the tree.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

import spfemu
from spfemu.engines import cache
from spfemu.engines.jit import compiler_versions
from spfemu.engines.stepped import Fiber, FiberState, StepEngine
from spfemu.engines.steps import Step
from spfemu.engines.symbols import symbol
from spfemu.layout import CACHE_LINE, CPU, PAGE, PAGE_SIZE
from spfemu.measure.build import compose, protocols
from spfemu.measure.plan import Progress, quiet
from spfemu.mm.flags import Map, Prot
from spfemu.segment import Geometry, Segment

AREA = 1 << 40
PAGES = 64
READY_PAGES = 8
"""Pages written before: tables and anon_vma are there, and the CPU has frames on its list."""
MAPPINGS = 16
TREE = re.compile(r"\.(rb|latch|mm_rb)_|\.mm_rb$")
"""Names of words that belong to the tree of VMAs or its second copy."""
RIGHTS = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
KEEP_TABLES = 4
"""Tables kept in the cache: one is good for one version of the sources."""


class SharedWrites(msgspec.Struct, frozen=True):
    """Writes of one call to shared lines: their number, the lines, and the writes by field."""

    writes: int
    lines: int
    fields: dict[str, int]

    def __str__(self) -> str:
        writes = "write" if self.writes == 1 else "writes"
        lines = "line" if self.lines == 1 else "lines"
        return f"{self.writes} {writes} to {self.lines} shared {lines}"


def shared_writes_table(progress: Progress = quiet) -> dict[str, SharedWrites]:
    """Count for all protocols, or find what was counted for these sources before."""
    name = f"{_sources()[:40]}.shared-writes"
    kept = cache.find(name)
    if kept is not None:
        return msgspec.json.decode(kept, type=dict[str, SharedWrites])
    table = {}
    for done, protocol in enumerate(names := list(protocols())):
        progress(f"stepping through a fault of {protocol}", done / len(names))
        table[protocol] = shared_writes_per_fault(protocol)
    cache.keep(name, msgspec.json.encode(table), KEEP_TABLES)
    return table


def _sources() -> str:
    """Hash everything that a fault may depend on: the package's sources and the compiler."""
    digest = hashlib.sha256(repr(sorted(compiler_versions().items())).encode())
    root = Path(spfemu.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def shared_writes_per_fault(protocol: str) -> SharedWrites:
    """Count for a protocol by name; raises UsageError if there is none of that name.

    Compiles the kernel for the stepped engine: seconds the first time, then milliseconds.
    """
    engine = StepEngine(compose("page_fault1", protocol))
    segment = Segment.create(Geometry(nr_cpus=2))
    try:
        return _summary(segment, _of_fault(engine, segment))
    finally:
        segment.close()


def shared_writes_per_mapping(protocol: str, lookup: str) -> SharedWrites:
    """Count what an mmap writes to the tree of VMAs, with a way of looking them up.

    The new VMA is the highest of MAPPINGS, so the tree is rotated.  Its own links are counted.
    """
    config = {"CONFIG_VMA_LATCH": int(lookup == "latch")}
    engine = StepEngine(compose("page_fault1", protocol, config=config))
    segment = Segment.create(Geometry(nr_cpus=2))
    try:
        return _summary(segment, _of_mapping(engine, segment))
    finally:
        segment.close()


def _of_mapping(engine: StepEngine, segment: Segment) -> Counter[int]:
    segment.mms["mm_users"] = 2
    cpu = segment.cpu(0)
    engine.call("cpu_online", cpu)
    for index in range(MAPPINGS - 1):
        engine.call("sys_mmap", cpu, AREA + 2 * index * PAGE_SIZE, PAGE_SIZE, RIGHTS, FIXED)
    new = AREA + 2 * MAPPINGS * PAGE_SIZE
    fiber = engine.spawn("sys_mmap", cpu, new, PAGE_SIZE, RIGHTS, FIXED)
    written = _written(fiber, (range(cpu, cpu + CPU.SIZE),))
    return Counter({a: n for a, n in written.items() if TREE.search(symbol(segment, a) or "")})


def _of_fault(engine: StepEngine, segment: Segment) -> Counter[int]:
    segment.mms["mm_users"] = 2
    cpu = segment.cpu(0)
    engine.call("cpu_online", cpu)
    engine.call("sys_mmap", cpu, AREA, PAGES * PAGE_SIZE, RIGHTS, FIXED)
    for page in range(READY_PAGES):
        engine.call("user_write", cpu, AREA + page * PAGE_SIZE, 1)
    new = int(segment.cpus["pcp_list"][0])
    frame = segment.address["frames"] + (new - segment.address["vmemmap"]) // PAGE.SIZE * PAGE_SIZE
    private = (
        range(cpu, cpu + CPU.SIZE),
        range(new, new + PAGE.SIZE),
        range(frame, frame + PAGE_SIZE),
    )
    return _written(engine.spawn("user_write", cpu, AREA + READY_PAGES * PAGE_SIZE, 1), private)


def _written(fiber: Fiber, private: Sequence[range]) -> Counter[int]:
    """Let a call run to its end; returns its writes outside `private` by address."""
    written: Counter[int] = Counter()
    while fiber.state is FiberState.READY:
        event = fiber.event
        if event is not None and event.kind in (Step.STORE, Step.RMW):
            address = event.arguments[0]
            written[address] += not any(address in part for part in private)
        fiber.resume()
    fiber.free()
    return +written


def _summary(segment: Segment, written: Counter[int]) -> SharedWrites:
    fields = {symbol(segment, address) or hex(address): n for address, n in written.items()}
    return SharedWrites(
        writes=sum(written.values()),
        lines=len({address // CACHE_LINE for address in written}),
        fields=fields,
    )
