# SPDX-License-Identifier: MIT
"""The whole kernel with any protocol and configuration, on any engine, for tests that use it all.

A mutant is a layer of kernel functions over it that makes it wrong: it shows that a test can fail.
"""

import functools
import pkgutil
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import data_ops
import file_ops
import page_ops
import swap_ops
import tlb_ops
from mm_machine import Layer, Machine, renamed

import spfemu.mm
from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.kernel import kernel
from spfemu.layout import CPU, GATHER, PAGE
from spfemu.mm.flags import Pg
from spfemu.mm.irq import local_flush_tlb
from spfemu.mm.tlb import tlb_batch_free
from spfemu.primitives import atomic_fetch_and, load, store
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

MODULES = tuple(m.name for m in pkgutil.iter_modules(spfemu.mm.__path__) if m.name != "worker")
"""All of the kernel but what runs a workload."""
SCHEMES = {"rcu": 1, "irq": 0}
"""How page tables are freed, as CONFIG_MMU_GATHER_RCU_TABLE_FREE."""


# Mutants


@kernel
def mutant_flush_nobody_else(cpu: int, mm: int) -> None:
    """Flush only the own TLB."""


@kernel
def mutant_finish_without_flush(cpu: int) -> None:
    """Free what was unmapped while TLBs may still have it."""
    gather = cpu + CPU.gather
    if load(gather + GATHER.need_flush) != 0:
        tlb_batch_free(cpu, gather)
    store(gather + GATHER.mm, 0)


@kernel
def mutant_flush_only_here(cpu: int, mm: int) -> None:
    """Flush the own TLB, and do not even say that there was a flush."""
    local_flush_tlb(cpu)


@kernel
def mutant_put_nothing(cpu: int, page: int) -> None:
    """Never free a frame."""


@kernel
def mutant_write_nothing(cpu: int, page: int) -> None:
    """Evict a page without copying it to its slot."""
    atomic_fetch_and(page + PAGE.flags, ~Pg.DIRTY)


_HERE = functions_of(sys.modules[__name__])
MUTANTS: dict[str, Layer] = {
    "": {},
    "flush nobody else": renamed(_HERE, flush_tlb_others="mutant_flush_nobody_else"),
    "finish without flush": renamed(_HERE, tlb_finish_mmu="mutant_finish_without_flush"),
    "flush only here": renamed(_HERE, flush_tlb_mm="mutant_flush_only_here"),
    "put nothing": renamed(_HERE, put_page="mutant_put_nothing"),
    "write nothing": renamed(_HERE, swap_writepage="mutant_write_nothing"),
}


@functools.cache
def kernel_engine(
    name: str, protocol: str = "classic", scheme: str = "rcu", mutant: str = "", version: int = 0
) -> NativeEngine | PlainEngine:
    """Return an engine with the whole kernel, compiled once per session.

    `version` is that of the Linux whose mappings it has, as CONFIG_LINUX_VERSION; 0: the default.
    """
    modules: list[ModuleType] = [import_module("spfemu.mm." + module) for module in MODULES]
    modules += [data_ops, file_ops, page_ops, swap_ops, tlb_ops]
    config = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": SCHEMES[scheme]}
    if version:
        config["CONFIG_LINUX_VERSION"] = version
    layers = [*map(functions_of, modules), protocol_functions(protocol), MUTANTS[mutant]]
    program = link(layers, config)
    return NativeEngine(program) if name == "native" else PlainEngine(program)


class KernelMachine(Machine):
    """A segment with one mm that all CPUs run; CPUs are idle between calls."""

    def __init__(
        self,
        engine: NativeEngine | PlainEngine,
        *,
        nr_cpus: int = 1,
        nr_frames: int = 1000,
        nr_vmas: int = 1000,
        users: int = 0,
    ) -> None:
        geometry = Geometry(nr_cpus=nr_cpus, nr_frames=nr_frames, nr_vmas=nr_vmas)
        super().__init__(engine, Segment.create(geometry))
        self.reset(users=users)

    def close(self) -> None:
        """Close the segment's descriptor."""
        self.segment.close()

    def reset(self, seed: int = 1, users: int = 0) -> None:
        """Put the segment into its initial state; `users` is mm_users, else the number of CPUs."""
        self.segment.reset(seed)
        nr_cpus = self.segment.geometry.nr_cpus
        self.mm = self.segment.mms[0]
        self.mm["mm_users"] = users or nr_cpus
        self.mm["cpumask"][0] = (1 << nr_cpus) - 1

    def on(self, index: int, name: str, *arguments: int) -> Any:
        """Run a kernel function on a CPU; the others are idle, so it waits for none."""
        cpu = self.cpu(index)
        self.call("cpu_idle_exit", cpu)
        result = self.call(name, cpu, *arguments)
        self.call("cpu_idle_enter", cpu)
        return result

    def violations(self) -> list[str]:
        """Run what is queued for RCU, then check the segment."""
        for index in range(self.segment.geometry.nr_cpus):
            self.on(index, "rcu_barrier")
        return check_segment(self.segment)
