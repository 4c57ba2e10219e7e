# SPDX-License-Identifier: MIT
"""The shared memory segment: a memfd that every worker maps at the same address.

A memfd has no name in the file system, so nothing is left behind however its processes die;
forked workers inherit the mapping, and another process attaches through ``/proc/PID/fd/N``.
All references inside are addresses that hold in every process that has it mapped, as kernel
pointers do, so kernel code follows them without arithmetic.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from spfemu.errors import ResourceError, UsageError
from spfemu.layout import (
    ADDRESS_SPACE,
    ANON_VMA,
    ANON_VMA_CHAIN,
    CACHE_LINE,
    CPU,
    FILE,
    HISTOGRAM,
    HUGE_PAGE,
    MAGIC,
    MM,
    MMU_NOTIFIER,
    NR_CPUS_MAX,
    NR_NODES_MAX,
    PAGE,
    PAGE_SIZE,
    RECLAIM,
    SHADOW,
    STRESS,
    STRESS_CPU,
    SWAP_CLUSTER,
    SWAP_SLOT,
    SYSTEM,
    USERFAULTFD_CTX,
    VMA,
    VMA_STAMPS,
    WORD,
    Struct,
    layout_hash,
)
from spfemu.mm.flags import (
    HPAGE_PMD_NR,
    MMAP_MIN_ADDR,
    PMD_SIZE,
    RLIM_INFINITY,
    TASK_SIZE,
    PageKind,
    Pg,
)
from spfemu.mm.irq import TLB_GENERATION
from spfemu.mm.nodes import ZONE_CHAINS, ZONE_FREE, ZONE_LIST
from spfemu.mm.page_alloc import PCP_BATCH
from spfemu.mm.swapfile import SWAPFILE_CLUSTER

BASE = 1 << 45
SLOT = 1 << 40
SLOTS = 32
"""The segment is mapped at the first free of these slots (32 TiB upwards: above heaps, below
stacks and libraries), else wherever the real kernel puts it."""

NR_SCRATCH = 512
CYCLES_PER_TICK = 8_000_000
"""Until the parent has measured it: 4 ms at 2 GHz."""
BRK_START = 1 << 32
MMAP_BASE = (1 << 46) - (1 << 30)
STACK_LIMIT = 8 << 20
"""RLIMIT_STACK as Linux starts with it (include/uapi/linux/resource.h: _STK_LIM)."""

_MAP_FIXED_NOREPLACE = 0x100000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass(frozen=True)
class Geometry:
    """How much of everything a segment holds.

    `nr_mms` are in use from the beginning; fork and exec take theirs from `nr_spare_mms`.
    `nr_avcs` are chains between VMAs and the anon_vmas of their ancestors, so only fork uses them.
    `nr_files` counts open files; a mapping of shared anonymous memory takes one.
    `nr_trace_words` hold the calls of the workload `trace`, `nr_model_words` what the stress mix
    knows that memory must hold.
    `nr_swap` are slots of the swap area; without any, nothing but what MADV_FREE gave up is ever
    reclaimed.
    `nr_huge` huge frames are the last of `nr_frames`, 512 of them each.
    `stress` is 1 if there is room for what oracles note (see spfemu/stress).
    """

    nr_cpus: int = 1
    nr_mms: int = 1
    nr_frames: int = 1024
    nr_vmas: int = 256
    nr_anon_vmas: int = 128
    nr_spare_mms: int = 0
    nr_avcs: int = 256
    nr_files: int = 64
    nr_notifiers: int = 4
    nr_uffds: int = 8
    nr_nodes: int = 1
    nr_trace_words: int = 0
    nr_model_words: int = 0
    nr_swap: int = 0
    nr_huge: int = 0
    stress: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.nr_cpus <= NR_CPUS_MAX:
            raise UsageError(f"a segment holds 1 to {NR_CPUS_MAX} CPUs, not {self.nr_cpus}")
        if not 1 <= self.nr_mms <= self.nr_cpus:
            raise UsageError(f"{self.nr_cpus} CPUs can run 1 to {self.nr_cpus} mms")
        if not 1 <= self.nr_nodes <= NR_NODES_MAX:
            raise UsageError(f"a segment has 1 to {NR_NODES_MAX} NUMA nodes, not {self.nr_nodes}")
        if self.nr_frames < 16 + self.nr_mms:
            raise UsageError(f"a segment needs {16 + self.nr_mms} frames or more")
        if self.nr_small < 16 + self.nr_mms:
            raise UsageError(f"{self.nr_frames} frames have no room for {self.nr_huge} huge ones")

    @property
    def nr_small(self) -> int:
        """Frames that are handed out one by one."""
        return self.nr_frames - self.nr_huge * HPAGE_PMD_NR

    @property
    def frames_per_node(self) -> int:
        """Frames of each node but the last, which may have fewer; huge frames are of no node."""
        return -(-self.nr_small // self.nr_nodes)

    def shadowed(self) -> dict[str, int]:
        """Return how many objects of each kind have a SHADOW, in order, by the field of STRESS."""
        return {
            "frame_shadow": self.nr_frames,
            "mm_shadow": self.nr_mms + self.nr_spare_mms,
            "anon_vma_shadow": self.nr_anon_vmas,
            "avc_shadow": self.nr_avcs,
            "file_shadow": self.nr_files,
            "mapping_shadow": self.nr_files,
            "notifier_shadow": self.nr_notifiers,
            "vma_shadow": self.nr_vmas,
            "uffd_shadow": self.nr_uffds,
        }

    def areas(self) -> dict[str, tuple[int, int]]:
        """Return (offset, size) in bytes of each area, in order."""
        areas = {}
        offset = 0
        for name, size, alignment in (
            ("system", SYSTEM.SIZE, PAGE_SIZE),
            ("scratch", NR_SCRATCH * WORD, 128),
            ("trace", self.nr_trace_words * WORD, 128),
            ("model", self.nr_model_words * WORD, 128),
            ("cpus", CPU.SIZE * self.nr_cpus, 128),
            ("mms", MM.SIZE * (self.nr_mms + self.nr_spare_mms), 128),
            ("histograms", HISTOGRAM.SIZE * self.nr_cpus * 2, 128),
            ("anon_vmas", ANON_VMA.SIZE * self.nr_anon_vmas, 128),
            ("avcs", ANON_VMA_CHAIN.SIZE * self.nr_avcs, 128),
            ("files", FILE.SIZE * self.nr_files, 128),
            ("mappings", ADDRESS_SPACE.SIZE * self.nr_files, 128),
            ("notifiers", MMU_NOTIFIER.SIZE * self.nr_notifiers, 128),
            ("vmas", VMA.SIZE * self.nr_vmas, 128),
            ("uffds", USERFAULTFD_CTX.SIZE * self.nr_uffds, 128),
            ("swap_slots", SWAP_SLOT.SIZE * self.nr_swap, 128),
            ("swap_clusters", SWAP_CLUSTER.SIZE * self.nr_swap_clusters, 128),
            ("stress_area", STRESS.SIZE * self.stress, 128),
            ("stress_cpus", STRESS_CPU.SIZE * self.nr_cpus * self.stress, 128),
            ("vma_stamps", VMA_STAMPS.SIZE * self.nr_vmas * self.stress, 128),
            ("shadow", SHADOW.SIZE * sum(self.shadowed().values()) * self.stress, 128),
            ("vmemmap", PAGE.SIZE * self.nr_frames, 128),
            ("huge_pages", HUGE_PAGE.SIZE * self.nr_huge, 128),
            ("frames", PAGE_SIZE * self.nr_frames, PAGE_SIZE),
            ("swap_area", PAGE_SIZE * self.nr_swap, PAGE_SIZE),
        ):
            offset = -(-offset // alignment) * alignment
            if name == "frames" and self.nr_huge:
                # so that the huge frames, behind the others, are aligned to their size
                offset += -(offset + self.nr_small * PAGE_SIZE) % PMD_SIZE
            areas[name] = (offset, size)
            offset += size
        return areas

    @property
    def size(self) -> int:
        """Bytes of the whole segment."""
        offset, size = self.areas()["swap_area"]
        return offset + size

    @property
    def nr_swap_clusters(self) -> int:
        """Clusters of swap slots, the last of them perhaps a small one."""
        return -(-self.nr_swap // SWAPFILE_CLUSTER)


class Segment:
    """One mapped segment with NumPy views of its structs.

    `system`, `cpus`, `mms`, `histograms`, `anon_vmas`, `avcs`, `files`, `mappings`, `notifiers`,
    `vmas`, `uffds`, `swap_slots`, `swap_clusters`, `pages`, `huge_pages`, `stress`, `stress_cpus`,
    `shadow` are structured arrays, `words` is all of it as int64; all are live views.  The mapping
    goes with the last view.
    """

    def __init__(self, fd: int, base: int, geometry: Geometry) -> None:
        self.fd = fd
        self.base = base
        self.geometry = geometry
        self.size = geometry.size
        buffer = (ctypes.c_int64 * (self.size // WORD)).from_address(base)
        weakref.finalize(buffer, _libc.munmap, base, self.size)
        self.words: NDArray[np.int64] = np.frombuffer(memoryview(buffer), np.int64)
        areas = geometry.areas()
        self.address = {name: base + offset for name, (offset, _) in areas.items()}
        self.system = self._view("system", SYSTEM, 1)[0]
        self.cpus = self._view("cpus", CPU, geometry.nr_cpus)
        self.mms = self._view("mms", MM, geometry.nr_mms + geometry.nr_spare_mms)
        self.histograms = self._view("histograms", HISTOGRAM, 2 * geometry.nr_cpus)
        self.anon_vmas = self._view("anon_vmas", ANON_VMA, geometry.nr_anon_vmas)
        self.avcs = self._view("avcs", ANON_VMA_CHAIN, geometry.nr_avcs)
        self.files = self._view("files", FILE, geometry.nr_files)
        self.mappings = self._view("mappings", ADDRESS_SPACE, geometry.nr_files)
        self.huge_pages = self._view("huge_pages", HUGE_PAGE, geometry.nr_huge)
        self.notifiers = self._view("notifiers", MMU_NOTIFIER, geometry.nr_notifiers)
        self.vmas = self._view("vmas", VMA, geometry.nr_vmas)
        self.uffds = self._view("uffds", USERFAULTFD_CTX, geometry.nr_uffds)
        self.swap_slots = self._view("swap_slots", SWAP_SLOT, geometry.nr_swap)
        self.swap_clusters = self._view("swap_clusters", SWAP_CLUSTER, geometry.nr_swap_clusters)
        self.stress = self._view("stress_area", STRESS, geometry.stress)
        self.stress_cpus = self._view("stress_cpus", STRESS_CPU, geometry.nr_cpus * geometry.stress)
        shadows = sum(geometry.shadowed().values()) * geometry.stress
        self.shadow = self._view("shadow", SHADOW, shadows)
        self.pages = self._view("vmemmap", PAGE, geometry.nr_frames)

    def _view(self, area: str, struct: type[Struct], count: int) -> NDArray[Any]:
        start = (self.address[area] - self.base) // WORD
        words = self.words[start : start + struct.SIZE * count // WORD]
        return words.view(struct.dtype)

    @classmethod
    def create(
        cls, geometry: Geometry, *, populate: bool = True, advice: str = "use fewer workers"
    ) -> Segment:
        """Make, map, populate and initialise a segment.

        Without `populate` frames take memory when they are used: for what is not measured.  Raises
        ResourceError, with `advice`, when there is not enough memory.
        """
        size = geometry.size
        available = _available_memory()
        needed = size if populate else geometry.areas()["frames"][0]
        if needed > available * 0.9:
            raise ResourceError(
                f"the segment needs {needed >> 20} MiB and {available >> 20} MiB are available: "
                f"{advice}"
            )
        fd = os.memfd_create("spfemu", os.MFD_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, size)
            base = _map_anywhere(fd, size, mmap.MAP_POPULATE if populate else 0)
        except OSError as error:
            os.close(fd)
            raise ResourceError(f"cannot map {size >> 20} MiB: {error.strerror}") from error
        segment = cls(fd, base, geometry)
        segment.reset()
        return segment

    @classmethod
    def attach(cls, path: str) -> Segment:
        """Map the segment of another process, given as ``/proc/PID/fd/N``.

        Raises UsageError if it is no segment or has another layout, ResourceError if its address
        is taken in this process.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        header = np.frombuffer(os.pread(fd, SYSTEM.SIZE, 0).ljust(SYSTEM.SIZE, b"\0"), np.int64)
        system = header.view(SYSTEM.dtype)[0]
        if system["magic"] != MAGIC or system["layout_hash"] != layout_hash():
            os.close(fd)
            raise UsageError(f"{path} is no segment of this version of spfemu")
        geometry = Geometry(**{f.name: int(system[f.name]) for f in fields(Geometry)})
        if geometry.size != system["size"] or geometry.size > os.fstat(fd).st_size:
            os.close(fd)
            raise UsageError(f"{path} is cut short")
        base = int(system["base"])
        if _map(fd, geometry.size, base, mmap.MAP_POPULATE | _MAP_FIXED_NOREPLACE) != base:
            os.close(fd)
            raise ResourceError(f"the segment's address {base:#x} is taken in this process")
        return cls(fd, base, geometry)

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last view and the last process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def cpu(self, index: int) -> int:
        """Address of CPU block `index`."""
        return self.address["cpus"] + index * CPU.SIZE

    def mm(self, index: int) -> int:
        """Address of mm `index`."""
        return self.address["mms"] + index * MM.SIZE

    def scratch(self, index: int) -> int:
        """Address of scratch word `index`."""
        return self.address["scratch"] + index * WORD

    def word(self, address: int) -> int:
        """Read the word at `address` (for checks at rest: no memory order)."""
        return int(self.words[(address - self.base) // WORD])

    def reset(self, seed: int = 1) -> None:
        """Put everything but the frames' contents into the initial state.

        No worker may be running.  Every CPU runs mm `index * nr_mms // nr_cpus`.
        """
        g = self.geometry
        frames_at = self.address["frames"] - self.base
        self.words[: frames_at // WORD] = 0
        system = self.system
        system["magic"], system["layout_hash"] = MAGIC, layout_hash()
        system["base"], system["size"] = self.base, self.size
        for size in fields(Geometry):
            system[size.name] = getattr(g, size.name)
        for name in SYSTEM.dtype.names or ():
            if name in self.address:
                system[name] = self.address[name]
        system["zero_pfn"] = self.address["frames"]
        system["scratch"], system["nr_scratch"] = self.address["scratch"], NR_SCRATCH
        system["cycles_per_tick"] = CYCLES_PER_TICK
        system["rcu_gp"] = 1
        self._reset_cpus(seed)
        self._reset_stress()
        self._reset_frames()
        self._reset_swap()
        self._reset_mms()
        _chain(self.vmas, "vm_start", self.address["vmas"], VMA.SIZE)
        system["vma_free"] = self.address["vmas"]
        _chain(self.anon_vmas, "next_free", self.address["anon_vmas"], ANON_VMA.SIZE)
        system["anon_vma_free"] = self.address["anon_vmas"]
        if g.nr_avcs:
            _chain(self.avcs, "same_vma", self.address["avcs"], ANON_VMA_CHAIN.SIZE)
            system["avc_free"] = self.address["avcs"]
        if g.nr_files:
            _chain(self.files, "next_free", self.address["files"], FILE.SIZE)
            _chain(self.mappings, "next_free", self.address["mappings"], ADDRESS_SPACE.SIZE)
            system["file_free"] = self.address["files"]
            system["mapping_free"] = self.address["mappings"]
        if g.nr_notifiers:
            _chain(self.notifiers, "next", self.address["notifiers"], MMU_NOTIFIER.SIZE)
            system["notifier_free"] = self.address["notifiers"]
        system["uffds"] = system["uffd_free"] = self.address["uffds"]
        _chain(self.uffds, "next_free", self.address["uffds"], USERFAULTFD_CTX.SIZE)

    def _reset_cpus(self, seed: int) -> None:
        g, cpus = self.geometry, self.cpus
        index = np.arange(g.nr_cpus, dtype=np.int64)
        cpus["id"] = index
        cpus["mm"] = self.address["mms"] + (index * g.nr_mms // g.nr_cpus) * MM.SIZE
        cpus["system"] = self.base
        cpus["vmemmap"], cpus["frames"] = self.address["vmemmap"], self.address["frames"]
        cpus["zero_pfn"] = self.address["frames"]
        cpus["vma_slab_end"] = self.address["vmas"] + g.nr_vmas * VMA.SIZE
        cpus["tlb_tag"] = TLB_GENERATION
        cpus["rcu_qs"] = 1
        self._reset_nodes(index % g.nr_nodes)
        # any odd spread of the seed will do; zero would stay zero in an xorshift generator
        mask = (1 << 62) - 1
        mixed = (index + 1) * 0x9E3779B97F4A7C1 + (seed * 0x2545F4914F6CDD1 & mask)
        cpus["random"] = (mixed & mask) | 1

    def _reset_nodes(self, node: NDArray[np.int64]) -> None:
        """Tell each CPU its node; they are dealt out in turn."""
        g, vmemmap = self.geometry, self.address["vmemmap"]
        self.system["frames_per_node"] = g.frames_per_node
        self.cpus["node"] = node
        self.cpus["node_start"] = vmemmap + node * g.frames_per_node * PAGE.SIZE
        self.cpus["node_end"] = self.cpus["node_start"] + g.frames_per_node * PAGE.SIZE

    def _reset_stress(self) -> None:
        """Let CPUs find what oracles use."""
        g = self.geometry
        if not g.stress:
            return
        index = np.arange(g.nr_cpus, dtype=np.int64)
        self.cpus["stress"] = self.address["stress_cpus"] + index * STRESS_CPU.SIZE
        self.stress_cpus["stress"] = self.address["stress_area"]
        shadow = self.address["shadow"]
        for name, count in g.shadowed().items():
            self.stress[name] = shadow
            shadow += count * SHADOW.SIZE

    def _reset_frames(self) -> None:
        g, pages = self.geometry, self.pages
        first = 1 + g.nr_mms  # frame 0 is the zero page, then the top-level tables
        pages["flags"][0] = PageKind.RESERVED
        pages["refcount"][0] = 1
        frames_word = (self.address["frames"] - self.base) // WORD
        self.words[frames_word : frames_word + first * PAGE_SIZE // WORD] = 0
        for node in range(g.nr_nodes):
            low = max(first, node * g.frames_per_node)
            high = min(g.nr_small, (node + 1) * g.frames_per_node)
            self._reset_zone(node, np.arange(low, high, dtype=np.int64))
        pages["flags"][g.nr_small :] = Pg.COMPOUND
        self.system["huge_vmemmap"] = self.address["vmemmap"] + g.nr_small * PAGE.SIZE
        if g.nr_huge:
            _chain(self.huge_pages, "next", self.address["huge_pages"], HUGE_PAGE.SIZE)
            self.system["huge_free"] = self.address["huge_pages"]

    def _reset_zone(self, node: int, free: NDArray[np.int64]) -> None:
        """Put frames into the zone of a node, in whole chains and a rest."""
        pages, vmemmap = self.pages, self.address["vmemmap"]
        if not len(free):
            return
        whole = len(free) // PCP_BATCH * PCP_BATCH
        pages["lru"][free] = vmemmap + (free + 1) * PAGE.SIZE
        pages["lru"][free[-1]] = 0
        heads = free[:whole:PCP_BATCH]
        if len(heads):
            pages["lru"][heads + PCP_BATCH - 1] = 0
            pages["private"][heads[:-1]] = vmemmap + heads[1:] * PAGE.SIZE
            self.words[self.zone_word(node, ZONE_CHAINS)] = vmemmap + int(heads[0]) * PAGE.SIZE
        if whole < len(free):
            rest = vmemmap + int(free[whole]) * PAGE.SIZE
            self.words[self.zone_word(node, ZONE_LIST)] = rest
        self.words[self.zone_word(node, ZONE_FREE)] = len(free)

    def zone_word(self, node: int, offset: int) -> int:
        """Index in `words` of a field of a node's zone; `offset` is a ZONE_*, 0 the lock."""
        at = self.address["system"] + SYSTEM.zone_lock + node * CACHE_LINE + offset
        return (at - self.base) // WORD

    def _reset_swap(self) -> None:
        """Make all slots free, and let CPUs begin to take them far apart."""
        g = self.geometry
        if not g.nr_swap:
            return
        clusters = g.nr_swap_clusters
        self.system["nr_swap_clusters"] = clusters
        self.system["wmark_low"] = max(2 * PCP_BATCH, g.nr_frames // g.nr_nodes // 64)
        self.system["wmark_high"] = 2 * self.system["wmark_low"]
        first = np.arange(clusters, dtype=np.int64) * SWAPFILE_CLUSTER
        size = np.minimum(SWAPFILE_CLUSTER, g.nr_swap - first)
        self.swap_clusters["nr_slots"] = self.swap_clusters["nr_free"] = size
        self.swap_clusters["free"] = self.address["swap_slots"] + first * SWAP_SLOT.SIZE
        _chain(self.swap_slots, "next", self.address["swap_slots"], SWAP_SLOT.SIZE)
        self.swap_slots["next"][first + size - 1] = 0
        reclaim = self.cpus["reclaim"]
        place = np.arange(g.nr_cpus, dtype=np.int64) * clusters // g.nr_cpus
        reclaim[:, RECLAIM.swap_cluster // WORD] = place

    def _reset_mms(self) -> None:
        g, mms = self.geometry, self.mms[: self.geometry.nr_mms]
        index = np.arange(g.nr_mms, dtype=np.int64)
        self.mms["id"] = np.arange(len(self.mms), dtype=np.int64)
        if g.nr_spare_mms:
            _chain(self.mms[g.nr_mms :], "next_free", self.mm(g.nr_mms), MM.SIZE)
            self.system["mm_free"] = self.mm(g.nr_mms)
        mms["in_use"] = 1
        mms["pgd"] = self.address["frames"] + (1 + index) * PAGE_SIZE
        mms["mmap_base"], mms["task_size"] = MMAP_BASE, TASK_SIZE
        mms["mmap_min_addr"] = MMAP_MIN_ADDR
        mms["start_brk"] = mms["brk"] = BRK_START
        for limit in ("rlimit_as", "rlimit_data", "rlimit_memlock"):
            mms[limit] = RLIM_INFINITY
        mms["rlimit_stack"] = STACK_LIMIT
        mms["pgtables"] = mms["mm_count"] = 1
        tables = self.pages[1 : 1 + g.nr_mms]
        tables["flags"], tables["refcount"] = PageKind.TABLE, 1
        tables["private"] = self.address["mms"] + index * MM.SIZE


def _chain(slots: NDArray[Any], link: str, address: int, size: int) -> None:
    """Link all slots of a slab into one free list in order of address."""
    slots[link] = address + (np.arange(len(slots), dtype=np.int64) + 1) * size
    slots[link][-1] = 0


def _map(fd: int, size: int, address: int, flags: int) -> int:
    flags |= mmap.MAP_SHARED
    mapped = _libc.mmap(address or None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        return -ctypes.get_errno()
    if address and mapped != address:  # a kernel that does not know MAP_FIXED_NOREPLACE
        _libc.munmap(mapped, size)
        return -17
    return int(mapped)


def _map_anywhere(fd: int, size: int, flags: int) -> int:
    for slot in range(SLOTS):
        base = _map(fd, size, BASE + slot * SLOT, flags | _MAP_FIXED_NOREPLACE)
        if base > 0:
            return base
    base = _map(fd, size, 0, flags)
    if base < 0:
        raise OSError(-base, os.strerror(-base))
    return base


def _available_memory() -> int:
    """Bytes that may be used: free memory, and what the control group still allows."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            available = min(available, int(limit) - used)
    except (OSError, ValueError):
        return available
    return available
