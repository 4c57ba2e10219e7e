# SPDX-License-Identifier: MIT
"""Pin buffers, let a device write to them, unpin: O_DIRECT reads of a database; vmsplice.

A worker takes `pages` pages at a random place of one of its `areas` areas of `size` bytes, stores
to their frames as DMA does, looks whether it finds that through its mappings, and unpins them.
Every fourth buffer it drops afterwards and writes to its first page: the fault of that page is a
program's, those of the others are taken when they are pinned.  Writers are those of `mixed`; with
`overlap` they work in the areas of the first worker.  On the host, pinning is vmsplice into a pipe.
"""

from spfemu.kernel import kernel
from spfemu.layout import GUP_PAGES, PAGE_SHIFT
from spfemu.mm.direct_io import bio_map_user, bio_release_pages, dma_write
from spfemu.mm.flags import Errno, Madv
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.syscalls import sys_madvise
from spfemu.primitives import load
from spfemu.workloads.common import random_below, workload_random
from spfemu.workloads.mixed import expected, map_areas, random_range
from spfemu.workloads.parameters import Param, Parameters

EXTENDS = "mixed"
DEFAULTS = Parameters(size=1 << 20, areas=8, pages=8)
PAGES_SHARED = False
LOCKED_FAULTS = True


def iterations(parameters: Parameters) -> int:
    """Pages pinned."""
    return min(parameters.pages, GUP_PAGES)


@kernel
def workload_setup(cpu: int) -> int:
    """Map the worker's own areas."""
    return map_areas(cpu)


@kernel
def workload_op(cpu: int) -> int:
    """Do one I/O; drop every fourth buffer and begin to fill it anew."""
    start, length = random_range(cpu)
    pages = length >> PAGE_SHIFT
    if pages > GUP_PAGES:
        pages = GUP_PAGES
    pages = bio_map_user(cpu, start, pages)
    if pages < 0:
        return expected(cpu, pages)
    value = workload_random(cpu)
    for i in range(pages):
        dma_write(cpu, i, value + i)
    result = check_buffer(cpu, start, pages, value)
    bio_release_pages(cpu)
    if result == 0 and random_below(cpu, 4) == 0:
        result = sys_madvise(cpu, start, length, Madv.DONTNEED)
        if result == 0:
            result = user_write(cpu, start, value)
    return expected(cpu, result)


@kernel
def check_buffer(cpu: int, start: int, pages: int, value: int) -> int:
    """Read what the device has written; -EIO if something else is there.

    Not beside writers, who may have taken the buffer away.
    """
    if load(cpu + Param.OVERLAP):
        return 0
    for i in range(pages):
        result, word = user_read(cpu, start + (i << PAGE_SHIFT))
        if result < 0:
            return result
        if word != value + i:
            return -Errno.EIO
    return 0
