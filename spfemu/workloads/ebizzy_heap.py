# SPDX-License-Identifier: MIT
"""Copy a chunk to a heap, search the copy, trim: requests served without mmap (ebizzy -M).

A thread's heap in malloc is reserved once.  What is freed at its end goes back with MADV_DONTNEED,
so each copy faults anew, but nobody writes to the address space.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Madv
from spfemu.mm.syscalls import sys_madvise
from spfemu.primitives import load, store
from spfemu.workloads.common import map_anonymous
from spfemu.workloads.parameters import State

NAME = "ebizzy-heap"
EXTENDS = "ebizzy"


@kernel
def chunk_alloc(cpu: int, size: int) -> int:
    """Take the worker's heap, which is made at the first time; its address or -errno."""
    heap = load(cpu + State.HEAP)
    if heap == 0:
        heap = map_anonymous(cpu, size)
        if heap > 0:
            store(cpu + State.HEAP, heap)
    return heap


@kernel
def chunk_free(cpu: int, copy: int, size: int) -> int:
    """Trim the heap; 0 or -errno."""
    return sys_madvise(cpu, copy, size, Madv.DONTNEED)
