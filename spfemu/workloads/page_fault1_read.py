# SPDX-License-Identifier: MIT
"""Map an area, read every page of it (the zero page), unmap it.

will-it-scale's page_fault1 with loads for stores.  `size` is the area of each worker.
"""

from spfemu.kernel import kernel
from spfemu.mm.syscalls import sys_munmap
from spfemu.primitives import load
from spfemu.workloads.common import map_anonymous, read_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, table_frames

NAME = "page_fault1-read"
DEFAULTS = Parameters(size=16 << 20)


def needs(parameters: Parameters) -> Needs:
    """Page tables only: every page is the zero page."""
    pages = parameters.size_pages * parameters.workers
    return Needs(table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages


@kernel
def workload_setup(cpu: int) -> int:
    """Nothing is kept between operations."""
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Map, read every page, unmap."""
    size = load(cpu + Param.SIZE)
    area = map_anonymous(cpu, size)
    if area < 0:
        return area
    result = read_pages(cpu, area, area + size)
    if result < 0:
        return result
    return sys_munmap(cpu, area, size)
