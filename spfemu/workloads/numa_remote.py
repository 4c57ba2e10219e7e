# SPDX-License-Identifier: MIT
"""Use memory that another thread filled: servers that load on one node (NUMA balancing).

The first worker of a process writes all parts, on its own node; then each goes through its part
again and again, reading and changing every page, and looks whether it finds what it wrote.  `size`
is one part.  With `--nodes` of two or more, hinting faults move the parts to their workers; without
there are no faults.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import Errno
from spfemu.mm.mmu import user_read, user_write
from spfemu.primitives import load, store
from spfemu.workloads.common import pages_of, share_anonymous
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=1 << 20)
FAULTS = False


def needs(parameters: Parameters) -> Needs:
    """The parts of all workers."""
    pages = parameters.size_pages * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """Pages used."""
    return parameters.size_pages


@kernel
def workload_setup(cpu: int) -> int:
    """Map and fill the parts if this is the first worker of the mm, else take what it made."""
    length = part_size(cpu) * load(cpu + Param.WORKERS)
    area, fills = share_anonymous(cpu, length)
    if area < 0:
        return area
    store(cpu + State.TURN, 0)
    store(cpu + State.AREA, area)
    address = area
    while fills and address < area + length:
        result = user_write(cpu, address, 0)
        if result < 0:
            return result
        address += PAGE_SIZE
    return 0


@kernel
def part_size(cpu: int) -> int:
    """Return the length of a part, in whole pages."""
    return pages_of(load(cpu + Param.SIZE)) * PAGE_SIZE


@kernel
def workload_op(cpu: int) -> int:
    """Find the number of this round in every page of the own part, and write the next."""
    size = part_size(cpu)
    turn = load(cpu + State.TURN)
    address = load(cpu + State.AREA) + load(cpu + Param.WORKER) * size
    end = address + size
    while address < end:
        result, value = user_read(cpu, address)
        if result == 0 and value != turn:
            result = -Errno.EIO
        if result == 0:
            result = user_write(cpu, address, turn + 1)
        if result < 0:
            return result
        address += PAGE_SIZE
    store(cpu + State.TURN, turn + 1)
    return 0
