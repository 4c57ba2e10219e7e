# SPDX-License-Identifier: MIT
"""Map an area and unmap it without touching it (will-it-scale mmap1).

`size` is the area: 128 MiB as there.
"""

from spfemu.kernel import kernel
from spfemu.mm.syscalls import sys_munmap
from spfemu.primitives import load
from spfemu.workloads.common import map_anonymous
from spfemu.workloads.parameters import Needs, Param, Parameters, table_frames

DEFAULTS = Parameters(size=128 << 20)


def needs(parameters: Parameters) -> Needs:
    """No page is touched."""
    return Needs(table_frames(0, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """One mapping."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Nothing is kept between operations."""
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Map and unmap."""
    size = load(cpu + Param.SIZE)
    area = map_anonymous(cpu, size)
    if area < 0:
        return area
    return sys_munmap(cpu, area, size)
