# SPDX-License-Identifier: MIT
"""What stands in for the parts that a workload leaves out.

Nothing to set up; an operation that maps an area, touches it and unmaps it, as most of
will-it-scale's memory tests do; no writers, for which the command line refuses them; nothing to do
when somebody leaves.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Errno
from spfemu.mm.syscalls import sys_munmap
from spfemu.primitives import load
from spfemu.workloads.common import map_anonymous, write_pages
from spfemu.workloads.parameters import Param


@kernel
def workload_setup(cpu: int) -> int:
    """Nothing is kept between operations."""
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Map, touch, unmap."""
    size = load(cpu + Param.SIZE)
    area = map_area(cpu, size)
    if area < 0:
        return area
    result = touch_area(cpu, area, size)
    if result < 0:
        return result
    return sys_munmap(cpu, area, size)


@kernel
def map_area(cpu: int, size: int) -> int:
    """Map private memory; the address or -errno."""
    return map_anonymous(cpu, size)


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Write to every page; 0 or -errno."""
    return write_pages(cpu, area, area + size)


@kernel
def writer_setup(cpu: int) -> int:
    """Refuse: this workload has no writers."""
    return -Errno.EINVAL


@kernel
def writer_op(cpu: int) -> int:
    """Refuse: this workload has no writers."""
    return -Errno.EINVAL


@kernel
def workload_leave(cpu: int) -> None:
    """Leave nothing that somebody waits for."""


@kernel
def writer_leave(cpu: int) -> None:
    """Leave nothing that somebody waits for."""
