# SPDX-License-Identifier: MIT
"""Make a heap of one page and drop it again: short allocations, empty heap (will-it-scale).

A process has one heap, so in threads mode all workers move the same break, each to where it was
when the worker started and a page above, as there.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import Errno
from spfemu.mm.syscalls import sys_brk
from spfemu.primitives import load, store
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=PAGE_SIZE)
FAULTS = False


def needs(parameters: Parameters) -> Needs:
    """No page is touched."""
    return Needs(table_frames(0, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """Two calls."""
    return 2


@kernel
def workload_setup(cpu: int) -> int:
    """Remember the break; on the host stay clear of the heap that this process itself uses."""
    start = sys_brk(cpu, 0) + load(cpu + Param.BRK_GAP) + heap_kept(cpu)
    store(cpu + State.AREA, start)
    return move_break(cpu, start)


@kernel
def heap_kept(cpu: int) -> int:
    """Bytes of the heap that stay when it is shrunk."""
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Grow by `size` bytes (one page) and shrink."""
    start = load(cpu + State.AREA)
    result = move_break(cpu, start + load(cpu + Param.SIZE))
    if result < 0:
        return result
    return move_break(cpu, start)


@kernel
def move_break(cpu: int, address: int) -> int:
    """Set the break; 0 or -ENOMEM, which brk says by returning another address."""
    if sys_brk(cpu, address) != address:
        return -Errno.ENOMEM
    return 0
