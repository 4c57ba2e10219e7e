# SPDX-License-Identifier: MIT
"""Broken variants of protocols, and the search for an order of steps that shows it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from spfemu.checks import check_segment
from spfemu.engines.plain import KernelPanic
from spfemu.engines.source import KernelFunction
from spfemu.engines.stepped import StepEngine
from spfemu.segment import Geometry, Segment
from spfemu.stress.mutant import mutants
from spfemu.stress.schedules.process import Process, Threads, program

AREA = 1 << 40
ORDERS = 4000
IMPORTS = """
from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE, VMA, VMF
from spfemu.mm.flags import *
from spfemu.mm.memory import *
from spfemu.mm.mmap_lock import *
from spfemu.mm.pgtable import *
from spfemu.mm.rcu import *
from spfemu.mm.rwsem import *
from spfemu.mm.spinlock import *
from spfemu.mm.vma import __find_vma
from spfemu.mm.vma_write import *
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import *
"""


def mutant_engine(
    protocol: str, name: str, layer: Mapping[str, KernelFunction] | None = None, **config: int
) -> StepEngine:
    """Return the stepped kernel with a protocol and a mutant, which may be one of another."""
    return StepEngine(program(protocol, (mutants()[name].path,), layer, **config))


def engine_with(
    protocol: str,
    text: str,
    layer: Mapping[str, KernelFunction] | None = None,
    **config: int,
) -> StepEngine:
    """Return the stepped kernel with a protocol, more calls, and functions that replace some."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.py"
        path.write_text(IMPORTS + text)
        return StepEngine(program(protocol, (str(path),), layer, **config))


def finds(engine: StepEngine, calls: list[tuple]) -> bool:
    """Tell whether any of many random orders of `calls` leaves a violation or stops a CPU.

    The area of 16 pages at AREA is mapped, and its first page written.
    """
    segment = Segment.create(Geometry(nr_cpus=3))
    process = Process(engine, segment)
    try:
        return any(_wrong(process, calls, seed) for seed in range(ORDERS))
    finally:
        segment.close()


def _wrong(process: Process, calls: list[tuple], seed: int) -> bool:
    process.begin(seed)
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        for call in calls:
            threads.thread(*call)
        try:
            threads.runs_randomly(seed)
        except KernelPanic:
            return True
    return bool(check_segment(process.segment))
