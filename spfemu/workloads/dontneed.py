# SPDX-License-Identifier: MIT
"""Fill extents and purge them later by MADV_DONTNEED: allocators such as jemalloc.

A worker's arena is a ring of extents of `size` bytes, 64 KiB.  An operation fills one and purges
the oldest, so that `areas` extents, 8, are there that were freed, as while they decay.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Madv
from spfemu.mm.syscalls import sys_madvise
from spfemu.primitives import load
from spfemu.workloads.common import map_ring, next_in_ring, ring_area, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, ring_needs

DEFAULTS = Parameters(size=64 << 10, areas=8)


def needs(parameters: Parameters) -> Needs:
    """One arena per worker."""
    return ring_needs(parameters, 1)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages


@kernel
def workload_setup(cpu: int) -> int:
    """Map the arena."""
    return map_ring(cpu)


@kernel
def workload_op(cpu: int) -> int:
    """Fill the next extent and purge the oldest."""
    length = load(cpu + Param.SIZE)
    extent = ring_area(cpu, 0)
    result = write_pages(cpu, extent, extent + length)
    if result < 0:
        return result
    next_in_ring(cpu)
    return sys_madvise(cpu, ring_area(cpu, 0), length, Madv.DONTNEED)
