# SPDX-License-Identifier: MIT
"""Map an area, write to every page of it, unmap it (will-it-scale page_fault1).

`size` is the area of each worker: 16 MiB here, 128 MiB there.
"""

from spfemu.kernel import kernel
from spfemu.mm.syscalls import sys_munmap
from spfemu.primitives import load
from spfemu.workloads.common import map_anonymous, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, table_frames

DEFAULTS = Parameters(size=16 << 20)


def needs(parameters: Parameters) -> Needs:
    """One area per worker."""
    pages = parameters.size_pages * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages


@kernel
def workload_setup(cpu: int) -> int:
    """Nothing is kept between operations."""
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Map, write to every page, unmap."""
    size = load(cpu + Param.SIZE)
    area = map_anonymous(cpu, size)
    if area < 0:
        return area
    result = write_pages(cpu, area, area + size)
    if result < 0:
        return result
    return sys_munmap(cpu, area, size)
