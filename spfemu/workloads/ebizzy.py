# SPDX-License-Identifier: MIT
"""Copy a chunk to fresh memory, search it, unmap it: requests of a web server (ebizzy).

After ebizzy with -mTt: threads that always map (-m), touch all pages of what they mapped (-T), and
search for a random key.  `areas` chunks of `size` bytes belong to all workers, 10 of 256 KiB; each
page begins with a key, in ascending order.  The search goes astray if data does.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.flags import Errno
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.syscalls import sys_munmap
from spfemu.primitives import load, store
from spfemu.workloads.common import map_anonymous, pages_of, random_below, share_anonymous
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=256 << 10, areas=10)
PAGES_SHARED = True


def needs(parameters: Parameters) -> Needs:
    """The chunks, for each mm, and a copy per worker."""
    workers = parameters.workers
    pages = parameters.size_pages * (parameters.areas + 1) * workers
    return Needs(pages + table_frames(pages, 2 * workers), 2 * workers)


def iterations(parameters: Parameters) -> int:
    """One search."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Make the chunks if this is the first worker of the mm, else take those it made."""
    pages = pages_of(load(cpu + Param.SIZE))
    chunks = load(cpu + Param.AREAS)
    first, fills = share_anonymous(cpu, (chunks * pages) << PAGE_SHIFT)
    if first < 0:
        return first
    store(cpu + State.AREA, first)
    for chunk in range(chunks if fills else 0):
        for page in range(pages):
            result = user_write(cpu, first + ((chunk * pages + page) << PAGE_SHIFT), page)
            if result < 0:
                return result
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Allocate, copy, search, free."""
    pages = pages_of(load(cpu + Param.SIZE))
    chunk = random_below(cpu, load(cpu + Param.AREAS))
    copy = chunk_alloc(cpu, pages << PAGE_SHIFT)
    if copy < 0:
        return copy
    source = load(cpu + State.AREA) + ((chunk * pages) << PAGE_SHIFT)
    result = copy_chunk(cpu, copy, source, pages)
    if result < 0:
        return result
    result = search_chunk(cpu, copy, pages, random_below(cpu, pages))
    if result < 0:
        return result
    return chunk_free(cpu, copy, pages << PAGE_SHIFT)


@kernel
def chunk_alloc(cpu: int, size: int) -> int:
    """Map memory for a copy; its address or -errno."""
    return map_anonymous(cpu, size)


@kernel
def chunk_free(cpu: int, copy: int, size: int) -> int:
    """Unmap a copy; 0 or -errno."""
    return sys_munmap(cpu, copy, size)


@kernel
def copy_chunk(cpu: int, copy: int, source: int, pages: int) -> int:
    """Copy the keys of all pages; 0 or -errno."""
    for page in range(pages):
        offset = page << PAGE_SHIFT
        result, key = user_read(cpu, source + offset)
        if result < 0:
            return result
        result = user_write(cpu, copy + offset, key)
        if result < 0:
            return result
    return 0


@kernel
def search_chunk(cpu: int, copy: int, pages: int, wanted: int) -> int:
    """Find the page with the key `wanted`, by halves; 0, or -EFAULT if it is not in its place."""
    low = 0
    high = pages
    while high - low > 1:
        middle = (low + high) >> 1
        result, key = user_read(cpu, copy + middle * PAGE_SIZE)
        if result < 0:
            return result
        if key <= wanted:
            low = middle
        else:
            high = middle
    return 0 if low == wanted else -Errno.EFAULT
