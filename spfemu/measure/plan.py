# SPDX-License-Identifier: MIT
"""What is to be measured, checked before anything is started."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spfemu.errors import UsageError
from spfemu.layout import NR_CPUS_MAX, NR_NODES_MAX, PAGE_SIZE
from spfemu.measure import build, topology
from spfemu.mm.flags import HPAGE_PMD_NR, PTRS_PER_TABLE
from spfemu.mm.kthread import Role
from spfemu.mm.page_alloc import PCP_BATCH
from spfemu.mm.rcu import RCU_QHIMARK
from spfemu.mm.swapfile import SWAPFILE_CLUSTER
from spfemu.segment import Geometry
from spfemu.workloads.parameters import TRACE, Needs, Parameters

if TYPE_CHECKING:
    from spfemu.replay.table import Table

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done (None: unknown).

It must not start threads: workers are forked while it is in use.
"""

MODES = ("threads", "processes")
TABLE_FREE = ("rcu", "irq")
SEQ_LINE = ("shared", "own")
LOOKUP = ("walk", "latch")
SLACK_FRAMES = 4 * PCP_BATCH + RCU_QHIMARK + 256
"""Frames per CPU on its own lists, and page tables waiting for a grace period: from RCU_QHIMARK
on a CPU runs its callbacks as fast as grace periods end."""
SLACK_LISTS = 4 * PCP_BATCH
"""Frames per CPU that its lists and those between them and the pool may hold."""
SLACK_PAGES = 256
"""Pages in memory at a time with which anything gets on."""
LEAST_SWAP = SWAPFILE_CLUSTER * PAGE_SIZE
"""Bytes of the smallest swap area: slots are given out in clusters."""
SLACK_VMAS = 256
"""VMA slots per CPU that are cached or wait for a grace period."""
SLACK_OPERATIONS = 16
"""Operations whose VMAs may wait for one besides, up to RCU_QHIMARK VMAs."""


def quiet(_message: str, _fraction: float | None) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Plan:
    """One configuration to measure; what is None becomes the workload's default."""

    workload: str
    protocol: str = "spf"
    target: str = "emulator"
    engine: str = "native"
    mode: str = "threads"
    workers: int = 1
    writers: int = 0
    seconds: float = 1.0
    """Length of a sample."""
    warmup: float = 0.2
    """Seconds that run before a sample and are dropped."""
    repeats: int = 6
    size: int | None = None
    areas: int | None = None
    pages: int | None = None
    rate: float | None = None
    overlap: bool = False
    table_free: str = "rcu"
    seq_line: str = "shared"
    lookup: str = "walk"
    khugepaged: bool = False
    nodes: int = 1
    """NUMA nodes; with several, hinting faults move pages between them."""
    seed: int = field(default_factory=lambda: secrets.randbits(32))
    overrides: tuple[str, ...] = ()
    fault_overhead_ns: float = 0.0
    latency: bool = False
    swap: int = 0
    """Bytes of the swap area; with any, kswapd runs."""
    memory: int | None = None
    """Bytes of the emulated machine's frames; None: as many as the workload needs."""
    huge_pages: bool = False
    """Host target: leave transparent huge pages as the system has them."""
    trace: Table | None = None
    """The calls that the workload `trace` makes."""
    oracles: bool = False
    """Build with all oracles of `spfemu.stress` and the kernel's assertions: nothing to measure."""

    def __post_init__(self) -> None:
        workload = build.workload(self.workload)
        build.choose("protocol", self.protocol, build.protocols())
        build.choose("target", self.target, build.TARGETS)
        build.choose("engine", self.engine, build.ENGINES)
        build.choose("mode", self.mode, MODES)
        build.choose("way of freeing page tables", self.table_free, TABLE_FREE)
        build.choose("place of mmap_seq", self.seq_line, SEQ_LINE)
        build.choose("way of looking VMAs up", self.lookup, LOOKUP)
        in_range("workers", self.workers, 1, NR_CPUS_MAX)
        if workload.monitors:
            self._add_monitors()
        in_range("nodes", self.nodes, 1, NR_NODES_MAX)
        in_range("writers", self.writers, 0, NR_CPUS_MAX - self.workers)
        in_range("seconds", self.seconds, 0.01, 3600)
        in_range("warm-up seconds", self.warmup, 0, 3600)
        in_range("repeats", self.repeats, 1, 1000)
        in_range("fault overhead [ns]", self.fault_overhead_ns, 0, 1e6)
        parameters = self.parameters
        in_range("size", parameters.size, 4096, 1 << 40)
        in_range("areas", parameters.areas, 1, 1 << 16)
        in_range("pages", parameters.pages, 1, max(1, parameters.size_pages))
        in_range("rate", parameters.rate, 0, 1e9)
        self._check_writers(workload)
        self._check_bare(workload)
        self._check_memory()
        self._check_trace()
        if self.target == "host" and self.engine != "native":
            raise UsageError("--target host runs compiled code only: use --engine native")

    def _add_monitors(self) -> None:
        """Give each process its monitor, which is a writer that nobody has to ask for."""
        if self.writers not in (0, self.nr_user_mms):
            raise UsageError(f"{self.workload} has a monitor per process: leave out --writers")
        object.__setattr__(self, "writers", self.nr_user_mms)

    def _check_trace(self) -> None:
        if (self.trace is None) != (self.workload != TRACE):
            raise UsageError("a recording is measured by 'spfemu run --trace FILE'")
        if self.trace is None:
            return
        if self.target == "host" or self.mode != "threads":
            raise UsageError("a recording is measured on the emulator, with threads")
        if self.workers != len(self.trace.threads):
            raise UsageError("a recording has as many workers as it has threads")

    def _check_memory(self) -> None:
        if self.swap:
            in_range("swap", self.swap, LEAST_SWAP, 1 << 40)
        if self.target == "host" and (self.swap or self.memory is not None):
            raise UsageError("memory and swap are the emulated machine's: use --target emulator")
        if self.memory is None or self.target == "host":
            return
        if self.memory < self.least_memory:
            raise UsageError(
                f"{self.memory} bytes of memory are too little for {self.nr_cpus} CPUs' free lists "
                f"and what {self.workload} has in page tables and page cache: give "
                f"{self.least_memory} or more"
            )
        in_range("memory", self.memory, self.least_memory, 1 << 40)

    @property
    def use_less(self) -> str:
        """What makes the segment smaller, for messages."""
        options = [
            *(["--size"] if self.memory is None else ["--memory"]),
            *(["--swap"] if self.swap else []),
        ]
        return f"use fewer workers or a smaller {' or '.join(options)}"

    @property
    def least_memory(self) -> int:
        """Bytes below which not even a few pages can be in memory at a time."""
        tables = self._needs.frames // PTRS_PER_TABLE + 4 * self.nr_mms
        frames = self.nr_cpus * SLACK_LISTS + 2 * tables + SLACK_PAGES + self._needs.cached
        return frames * PAGE_SIZE

    @property
    def _needs(self) -> Needs:
        """What the workload needs."""
        if self.trace is None:
            return build.workload(self.workload).needs(self.parameters)
        return self.trace.needs(self.parameters.pages)

    def _check_writers(self, workload: build.Workload) -> None:
        if self.writers and not workload.has_writers:
            raise UsageError(
                f"{self.workload} has no writers; workloads that have: "
                + ", ".join(n for n, w in build.workloads().items() if w.has_writers)
            )
        if self.target == "host" and not workload.on_host:
            raise UsageError(f"the host does not run {self.workload}: use the emulator")
        if self.overlap and not workload.has_writers:
            raise UsageError(f"{self.workload} has no writers that could overlap")
        if self.overlap and self.target == "host" and not workload.overlap_on_host:
            raise UsageError(
                f"{self.workload} with overlap would be a real SIGSEGV on the host: "
                "leave out --overlap"
            )

    def _check_bare(self, workload: build.Workload) -> None:
        """Refuse what protocol bare, which looks at no mapping and takes no lock, cannot do."""
        if self.protocol != "bare" or self.target == "host":
            return
        name, other = self.workload, "use another protocol"
        alone = "use --workers 1 or --mode processes"
        shared = workload.pages_shared and self.mode == "threads" and self.workers > 1
        files = workload.faults and workload.needs(self.parameters).files
        for holds, reason in (
            (workload.monitors, f"knows no mappings that a monitor of {name} could serve: {other}"),
            (self.writers, "takes no lock and cannot run with writers: use --writers 0"),
            (
                shared,
                f"takes no lock and workers of {name} touch the same pages: {alone}",
            ),
            (
                workload.forks,
                f"does not copy pages that {name} shares between processes: {other}",
            ),
            (
                workload.locked_faults,
                f"has no faults under the mmap lock, by which {name} gets frames: {other}",
            ),
            (self.swap, f"does not say where pages are mapped, so none can be reclaimed: {other}"),
            (files, f"knows no files, which {name} maps: {other}"),
        ):
            if holds:
                raise UsageError(f"protocol bare {reason}")

    @property
    def parameters(self) -> Parameters:
        """What the workload is told."""
        return build.workload(self.workload).parameters(
            size=self.size,
            areas=self.areas,
            pages=self.pages,
            rate=self.rate,
            overlap=self.overlap,
            workers=self.workers,
            writers=self.writers,
        )

    @property
    def config(self) -> dict[str, int]:
        """The CONFIG_* that are compiled in."""
        return {
            "CONFIG_MMU_GATHER_RCU_TABLE_FREE": int(self.table_free == "rcu"),
            "CONFIG_MMAP_SEQ_OWN_LINE": int(self.seq_line == "own"),
            "CONFIG_NUMA": int(self.nodes > 1),
            "CONFIG_VMA_LATCH": int(self.lookup == "latch"),
            "CONFIG_LATENCY": int(self.latency),
            "CONFIG_FAULT_OVERHEAD": int(self.fault_overhead_ns > 0),
            "CONFIG_DEBUG_VM": int(self.engine == "plain" or self.oracles),
            "CONFIG_KTHREADS": int(bool(self.kthreads)),
        }

    @property
    def nr_tasks(self) -> int:
        """Workers and writers: the threads of the measured processes."""
        return self.workers + self.writers

    @property
    def kthreads(self) -> tuple[Role, ...]:
        """Kernel threads that run beside them."""
        if self.target == "host":
            return ()
        roles = ((self.swap, Role.KSWAPD), (self.khugepaged, Role.KHUGEPAGED))
        return tuple(role for wanted, role in roles if wanted)

    @property
    def nr_cpus(self) -> int:
        """Workers, writers and kernel threads, in this order."""
        return self.nr_tasks + len(self.kthreads)

    def role(self, index: int) -> Role:
        """Return what CPU `index` runs."""
        if index < self.workers:
            return Role.WORKER
        return Role.WRITER if index < self.nr_tasks else self.kthreads[index - self.nr_tasks]

    @property
    def nr_user_mms(self) -> int:
        """One mm for all threads, or one per worker process."""
        return 1 if self.mode == "threads" else self.workers

    @property
    def nr_mms(self) -> int:
        """Those of processes, and an empty one if there are kernel threads."""
        return self.nr_user_mms + (1 if self.kthreads else 0)

    def mm_of(self, index: int) -> int:
        """Index of the mm that CPU `index` runs; writers share those of the workers."""
        if index >= self.nr_tasks:
            return self.nr_user_mms
        if self.mode == "threads":
            return 0
        return index if index < self.workers else (index - self.workers) % self.workers

    @property
    def geometry(self) -> Geometry:
        """The segment that the plan needs."""
        if self.target == "host":
            return Geometry(self.nr_cpus, self.nr_mms, 16 + self.nr_mms, 8, 8)
        needs = self._needs
        # any node may have to hold what all use: pages go where they are used
        frames = self.nodes * needs.frames + self.nr_cpus * SLACK_FRAMES + self.nr_mms + PCP_BATCH
        if self.memory is not None:
            frames = self.memory // PAGE_SIZE
        # as many huge frames as there may be pages for; the others are there as without them
        nr_huge = frames // HPAGE_PMD_NR if self.khugepaged else 0
        frames += nr_huge * HPAGE_PMD_NR
        waiting = min(SLACK_OPERATIONS * needs.vmas, RCU_QHIMARK)
        vmas = needs.vmas + (self.nr_cpus + 1) * (SLACK_VMAS + waiting)
        # a CPU that reclaims, or khugepaged, may keep the mm of a child that has ended
        spare_mms = needs.mms + (self.nr_cpus if needs.mms else 0)
        geometry = Geometry(
            self.nr_cpus,
            self.nr_mms,
            frames,
            vmas,
            vmas,
            spare_mms,
            max(needs.chains, 1),
            max(needs.files, Geometry.nr_files),
            nr_huge=nr_huge,
            nr_uffds=max(needs.uffds, 1),
            nr_nodes=self.nodes,
            nr_swap=self.swap // PAGE_SIZE,
            nr_model_words=needs.model,
            stress=int(self.oracles),
        )
        return (
            geometry if self.trace is None else replace(geometry, nr_trace_words=self.trace.words)
        )

    def with_workers(self, workers: int) -> Plan:
        """Return the same plan for another number of workers."""
        monitors = build.workload(self.workload).monitors
        return replace(self, workers=workers, writers=0 if monitors else self.writers)

    def label(self) -> str:
        """Return how messages name what is measured."""
        what = "host" if self.target == "host" else self.protocol
        plural = "" if self.workers == 1 else "s"
        return f"{what}, {self.workers} worker{plural}"

    def placement(self) -> list[int]:
        """CPU for each worker and writer; CPUs are shared once there are more than cores.

        Kernel threads are not pinned: they run where there is room, as the kernel's do.
        """
        order = topology.worker_order(topology.cores())
        return [order[i % len(order)] for i in range(self.nr_tasks)]

    def notes(self) -> list[str]:
        """Return what a reader of the result has to know and cannot see in the figures."""
        available = topology.cores()
        notes = []
        if self.nr_tasks > len(available):
            notes.append(
                f"{self.nr_tasks} workers and writers share {len(available)} CPUs: this is no "
                "point of a scaling curve"
            )
        elif self.nr_tasks > len({(c.package, c.core) for c in available}):
            notes.append("some workers share a core with another as SMT siblings")
        if self.kthreads and self.nr_tasks >= len(available):
            notes.append(
                f"kernel threads share the {len(available)} CPUs with the workers: each TLB flush "
                "waits for who is not running, so a sample may take long"
            )
        return notes


def in_range(what: str, value: float, low: float, high: float) -> None:
    """Raise UsageError, which says the range, unless `value` is in it."""
    if not low <= value <= high:
        raise UsageError(f"{what} must be from {low:.15g} to {high:.15g}, not {value:.15g}")
