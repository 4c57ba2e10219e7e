# SPDX-License-Identifier: MIT
"""Map a small area, write to its first pages, unmap it (will-it-scale malloc1).

That is what malloc and free of a block above the mmap threshold do: `size` is 132 KiB (128 KiB
and the header's page; 128 MiB in will-it-scale), `pages` is 1 (the header).
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.syscalls import sys_munmap
from spfemu.primitives import load
from spfemu.workloads.common import map_anonymous, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, table_frames

DEFAULTS = Parameters(size=(128 << 10) + PAGE_SIZE, pages=1)


def needs(parameters: Parameters) -> Needs:
    """One area per worker."""
    pages = parameters.pages * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """One block."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Nothing is kept between operations."""
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Map, write to the first pages, unmap."""
    size = load(cpu + Param.SIZE)
    area = map_anonymous(cpu, size)
    if area < 0:
        return area
    result = write_pages(cpu, area, area + (load(cpu + Param.PAGES) << PAGE_SHIFT))
    if result < 0:
        return result
    return sys_munmap(cpu, area, size)
