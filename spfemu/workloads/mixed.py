# SPDX-License-Identifier: MIT
"""Faults beside writers that map, protect, unmap and drop: a server with many threads.

A worker writes to `pages` pages at a random place of a random one of `areas` areas of `size`
bytes, then drops them.  A writer does one random call at a time (at most `rate` per second) on
one of `areas` areas of its own; with `overlap`, on the areas in which the workers fault, who then
meet areas that are gone or protected and go on.  The host cannot run that: it would be a SIGSEGV.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.flags import Errno, Madv, Map, Prot
from spfemu.mm.mmu import user_write
from spfemu.mm.syscalls import sys_madvise, sys_mmap, sys_mprotect, sys_munmap
from spfemu.primitives import load, store
from spfemu.workloads.common import (
    ANONYMOUS,
    READ_WRITE,
    map_anonymous,
    pages_of,
    random_below,
    write_pages,
)
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=1 << 20, areas=8, pages=16)
FIXED = ANONYMOUS | int(Map.FIXED)
OVERLAP_ON_HOST = False
"""A real access to an area that is gone ends the process."""
PAGES_SHARED = True
"""Workers of one mm may touch the same page."""


def needs(parameters: Parameters) -> Needs:
    """The areas of every mm and those of the writers; calls split them at most page by page."""
    regions = parameters.areas * (parameters.workers + parameters.writers)
    pages = regions * parameters.size_pages
    return Needs(pages + table_frames(pages, regions), regions * min(parameters.size_pages, 64))


def iterations(parameters: Parameters) -> int:
    """One round of writing and dropping."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Map the areas if this is the first worker of the mm, else take those it made."""
    leader = load(cpu + Param.LEADER)
    if leader == cpu:
        return map_areas(cpu)
    store(cpu + State.AREA, load(leader + State.AREA))
    store(cpu + State.STRIDE, load(leader + State.STRIDE))
    return 0


@kernel
def map_areas(cpu: int) -> int:
    """Map the areas a page apart, so that each is a VMA of its own."""
    size = pages_of(load(cpu + Param.SIZE)) << PAGE_SHIFT
    stride = size + PAGE_SIZE
    areas = load(cpu + Param.AREAS)
    first = map_anonymous(cpu, areas * stride)
    if first < 0:
        return first
    for i in range(areas):
        result = sys_munmap(cpu, first + i * stride + size, PAGE_SIZE)
        if result < 0:
            return result
    store(cpu + State.AREA, first)
    store(cpu + State.STRIDE, stride)
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Write to some pages of an area and drop them."""
    start, length = random_range(cpu)
    result = write_pages(cpu, start, start + length)
    if result == 0:
        result = sys_madvise(cpu, start, length, Madv.DONTNEED)
    return expected(cpu, result)


@kernel
def random_range(cpu: int) -> tuple[int, int]:
    """Choose `pages` pages (or as many as there are) of an area: address and length."""
    area = load(cpu + State.AREA) + random_below(cpu, load(cpu + Param.AREAS)) * load(
        cpu + State.STRIDE
    )
    available = (load(cpu + State.STRIDE) >> PAGE_SHIFT) - 1
    pages = load(cpu + Param.PAGES)
    if pages > available:
        pages = available
    first = random_below(cpu, available - pages + 1)
    return area + (first << PAGE_SHIFT), pages << PAGE_SHIFT


@kernel
def expected(cpu: int, result: int) -> int:
    """Forgive what another writer's call explains: memory that is gone or protected."""
    if load(cpu + Param.OVERLAP):
        if result == -Errno.EFAULT or result == -Errno.ENOMEM:
            return 0
    return result


@kernel
def writer_setup(cpu: int) -> int:
    """Map areas of its own, or take the workers'."""
    if load(cpu + Param.OVERLAP) == 0:
        return map_areas(cpu)
    leader = load(cpu + Param.LEADER)
    store(cpu + State.AREA, load(leader + State.AREA))
    store(cpu + State.STRIDE, load(leader + State.STRIDE))
    return 0


@kernel
def writer_op(cpu: int) -> int:
    """Do one call, chosen at random, to a random range."""
    start, length = random_range(cpu)
    action = random_below(cpu, 5)
    if action <= 1:
        return map_and_touch(cpu, start, length)
    if action == 2:
        prot = Prot.READ if random_below(cpu, 2) else READ_WRITE
        result = sys_mprotect(cpu, start, length, prot)
    elif action == 3:
        return expected(cpu, sys_munmap(cpu, start, length))
    else:
        result = sys_madvise(cpu, start, length, Madv.DONTNEED)
    # both say -ENOMEM when part of the range is not mapped, which is the writer's own doing
    if result == -Errno.ENOMEM:
        return 0
    return expected(cpu, result)


@kernel
def map_and_touch(cpu: int, start: int, length: int) -> int:
    """Map afresh at a fixed address and write to the first page, so that unmapping finds one."""
    result = sys_mmap(cpu, start, length, READ_WRITE, FIXED)
    if result < 0:
        return expected(cpu, result)
    return expected(cpu, user_write(cpu, start, start))
