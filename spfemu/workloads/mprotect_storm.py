# SPDX-License-Identifier: MIT
"""Protect, move and unprotect heap regions while threads fault: a moving garbage collector.

A worker's part of the heap is a ring of `areas` regions of `size` bytes, 8 of 64 KiB, and a free
one.  An operation evacuates the oldest: nobody may write to it any more, the `pages` pages of it
that live, 4, are copied to the free region, nobody may touch it any more, its memory goes back,
and it is the free one.  New objects fill the rest of the other.  A region that is protected splits
the heap's VMA, one that is unprotected lets it merge.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT
from spfemu.mm.flags import Madv, Prot
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.syscalls import sys_madvise, sys_mprotect
from spfemu.primitives import load
from spfemu.workloads.common import READ_WRITE, map_ring, next_in_ring, ring_area, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, ring_needs

DEFAULTS = Parameters(size=64 << 10, areas=8, pages=4)


def needs(parameters: Parameters) -> Needs:
    """The ring of each worker; a protected region makes three VMAs of one."""
    return ring_needs(parameters, 3)


def iterations(parameters: Parameters) -> int:
    """One region."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Map the worker's part of the heap."""
    return map_ring(cpu)


@kernel
def workload_op(cpu: int) -> int:
    """Evacuate a region and fill the next."""
    length = load(cpu + Param.SIZE)
    new = ring_area(cpu, 0)
    old = ring_area(cpu, 1)
    next_in_ring(cpu)
    result = evacuate(cpu, old, new, length)
    if result < 0:
        return result
    return write_pages(cpu, new + (load(cpu + Param.PAGES) << PAGE_SHIFT), new + length)


@kernel
def evacuate(cpu: int, old: int, new: int, length: int) -> int:
    """Move what lives in a region, drop the rest and free the region; 0 or -errno."""
    result = sys_mprotect(cpu, old, length, Prot.READ)
    if result == 0:
        result = move_objects(cpu, old, new)
    if result == 0:
        result = sys_mprotect(cpu, old, length, Prot.NONE)
    if result == 0:
        result = sys_madvise(cpu, old, length, Madv.DONTNEED)
    if result == 0:
        result = sys_mprotect(cpu, old, length, READ_WRITE)
    return result


@kernel
def move_objects(cpu: int, old: int, new: int) -> int:
    """Copy a word of each page that lives; 0 or -errno."""
    for page in range(load(cpu + Param.PAGES)):
        result, value = user_read(cpu, old + (page << PAGE_SHIFT))
        if result < 0:
            return result
        result = user_write(cpu, new + (page << PAGE_SHIFT), value)
        if result < 0:
            return result
    return 0
