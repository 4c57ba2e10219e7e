# SPDX-License-Identifier: MIT
"""Threads fill one mapping in parts: numerical codes, databases that start (SGI's pft).

Each worker writes to every page of its part.  After SGI's page fault test (pft), which maps once
and faults once; here each round ends with madvise(MADV_DONTNEED) of the worker's own part, so that
it can be repeated.  `size` is one part: 16 MiB, so that faults and not the flushes between rounds,
an IPI to each other worker, are what is measured.  Parts begin at multiples of 2 MiB: workers
share the mapping but no page table, hence no page-table lock.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import PMD_SIZE, Madv
from spfemu.mm.syscalls import sys_madvise
from spfemu.primitives import load, store
from spfemu.workloads.common import share_anonymous, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=16 << 20)


def needs(parameters: Parameters) -> Needs:
    """One part per worker."""
    pages = parameters.size_pages * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages


@kernel
def workload_setup(cpu: int) -> int:
    """Map all parts if this is the first worker of the mm, else take the mapping it made."""
    area, _ = share_anonymous(cpu, part_stride(cpu) * load(cpu + Param.WORKERS) + PMD_SIZE)
    if area < 0:
        return area
    store(cpu + State.AREA, (area + PMD_SIZE - 1) & -PMD_SIZE)
    return 0


@kernel
def part_stride(cpu: int) -> int:
    """Return the distance between parts, in whole page tables."""
    return (load(cpu + Param.SIZE) + PMD_SIZE - 1) & -PMD_SIZE


@kernel
def workload_op(cpu: int) -> int:
    """Write to every page of the own part and drop it again."""
    size = load(cpu + Param.SIZE)
    part = load(cpu + State.AREA) + load(cpu + Param.WORKER) * part_stride(cpu)
    result = write_pages(cpu, part, part + size)
    if result < 0:
        return result
    return sys_madvise(cpu, part, size, Madv.DONTNEED)
