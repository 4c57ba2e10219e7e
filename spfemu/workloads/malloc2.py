# SPDX-License-Identifier: MIT
"""Take, clear and free a small block: malloc between its system calls (will-it-scale).

malloc keeps what is freed and hands it out again, so no call is made and no fault is taken: what is
measured are accesses through the TLB, and what other threads' flushes do to them.  `size` is the
worker's arena, whose first word is the head of the list of free blocks of 1 KiB.
"""

from spfemu.kernel import kernel
from spfemu.layout import CACHE_LINE, PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.mmu import user_read, user_write
from spfemu.primitives import load, store
from spfemu.workloads.common import map_anonymous, pages_of
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=PAGE_SIZE)
FAULTS = False
BLOCK = 1 << 10


def needs(parameters: Parameters) -> Needs:
    """An arena per worker."""
    pages = parameters.size_pages * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """One block."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Map the arena and free all its blocks but the first, which holds the head of the list."""
    length = pages_of(load(cpu + Param.SIZE)) << PAGE_SHIFT
    arena = map_anonymous(cpu, length)
    if arena < 0:
        return arena
    store(cpu + State.AREA, arena)
    for block in range(1, length // BLOCK):
        result = block_free(cpu, arena, arena + block * BLOCK)
        if result < 0:
            return result
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Take a block, clear it, free it."""
    arena = load(cpu + State.AREA)
    block = block_alloc(cpu, arena)
    if block < 0:
        return block
    for line in range(BLOCK // CACHE_LINE):
        result = user_write(cpu, block + line * CACHE_LINE, 0)
        if result < 0:
            return result
    return block_free(cpu, arena, block)


@kernel
def block_alloc(cpu: int, arena: int) -> int:
    """Take the block that was freed last; its address or -errno."""
    result, block = user_read(cpu, arena)
    if result < 0:
        return result
    result, following = user_read(cpu, block)
    if result < 0:
        return result
    result = user_write(cpu, arena, following)
    return result if result < 0 else block


@kernel
def block_free(cpu: int, arena: int, block: int) -> int:
    """Put a block on the list; 0 or -errno."""
    result, following = user_read(cpu, arena)
    if result < 0:
        return result
    result = user_write(cpu, block, following)
    if result < 0:
        return result
    return user_write(cpu, arena, block)
