# SPDX-License-Identifier: MIT
"""Map areas, fill all, unmap all: allocators under churn (Baghdasaryan's spf_test).

`areas` areas of `pages` pages each per worker: 10 and 10 unless given.  The first word of an area
holds the address of the one mapped before it; unmapping follows these words.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT
from spfemu.mm.flags import Errno
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.syscalls import sys_munmap
from spfemu.primitives import load
from spfemu.workloads.common import map_anonymous, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, table_frames

DEFAULTS = Parameters(areas=10, pages=10)


def needs(parameters: Parameters) -> Needs:
    """All areas of all workers."""
    regions = parameters.areas * parameters.workers
    pages = regions * parameters.pages
    return Needs(pages + table_frames(pages, regions), regions)


def iterations(parameters: Parameters) -> int:
    """One round."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Nothing is kept between operations."""
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Map and write all areas, then unmap them, the last one first."""
    length = load(cpu + Param.PAGES) << PAGE_SHIFT
    last = 0
    for _area in range(load(cpu + Param.AREAS)):
        area = map_anonymous(cpu, length)
        if area < 0:
            return area
        result = write_pages(cpu, area, area + length)
        if result < 0:
            return result
        result = user_write(cpu, area, last)
        if result < 0:
            return result
        last = area
    for _area in range(load(cpu + Param.AREAS)):
        result, previous = user_read(cpu, last)
        if result < 0:
            return result
        result = sys_munmap(cpu, last, length)
        if result < 0:
            return result
        last = previous
    if last != 0:
        return -Errno.EFAULT
    return 0
