# SPDX-License-Identifier: MIT
"""Touch memory whose pages a monitor brings: post-copy migration, user-space paging.

Each worker writes to every page of its part of an area that a userfaultfd serves, looks whether the
data has come, and drops the part; a writer, one per process, is the monitor, which copies the pages
there.  `size` is one part.  A fault wakes two threads, so it takes far longer than others, and the
monitor is soon the one that all wait for.  At the end it closes the userfaultfd, which wakes
whoever still waits.  Not on the host, where it takes a right that few have.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SIZE, SYSTEM
from spfemu.mm.flags import Errno, Madv
from spfemu.mm.mcopy import userfaultfd_copy
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.syscalls import sys_madvise
from spfemu.mm.userfaultfd import sys_userfaultfd, userfaultfd_read, userfaultfd_wake
from spfemu.mm.userfaultfd_register import UffdMode, userfaultfd_register, userfaultfd_release
from spfemu.primitives import load, read_once, store
from spfemu.workloads.common import map_anonymous, pages_of
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=1 << 20)
MONITORS = True
"""Without a monitor the workers would wait for ever: each process has one writer."""
ON_HOST = False
"""It takes CAP_SYS_PTRACE or a sysctl there."""
DATA = 0x5EED
"""The first word of each page that the monitor brings."""
NAP_NS = 10_000_000
"""How long the monitor waits for a message before it looks whether it shall stop."""
MISSING = int(UffdMode.MISSING)


def needs(parameters: Parameters) -> Needs:
    """The parts of all workers and, per process, the monitor's page and one that it has in hand."""
    pages = (parameters.size_pages + 2) * parameters.workers
    tables = table_frames(pages, 2 * parameters.workers)
    return Needs(pages + tables, 2 * parameters.workers, uffds=parameters.workers)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages


@kernel
def workload_setup(cpu: int) -> int:
    """Map and register the area if this is the first worker of the mm, else take what it made."""
    leader = load(cpu + Param.LEADER)
    if leader == cpu:
        return map_served(cpu)
    store(cpu + State.AREA, load(leader + State.AREA))
    return 0


@kernel
def map_served(cpu: int) -> int:
    """Map the parts of all workers and let a userfaultfd serve them."""
    length = part_size(cpu) * load(cpu + Param.WORKERS)
    area = map_anonymous(cpu, length)
    if area < 0:
        return area
    ctx = sys_userfaultfd(cpu)
    if ctx < 0:
        return ctx
    store(cpu + State.AREA, area)
    store(cpu + State.FILE, ctx)
    return userfaultfd_register(cpu, ctx, area, length, MISSING)


@kernel
def part_size(cpu: int) -> int:
    """Return the length of a part, in whole pages."""
    return pages_of(load(cpu + Param.SIZE)) * PAGE_SIZE


@kernel
def workload_op(cpu: int) -> int:
    """Write to every page of the own part, find the monitor's data beside that, drop the part."""
    size = part_size(cpu)
    part = load(cpu + State.AREA) + load(cpu + Param.WORKER) * size
    address = part
    while address < part + size:
        result = touch_served(cpu, address)
        if result < 0:
            return result
        address += PAGE_SIZE
    return sys_madvise(cpu, part, size, Madv.DONTNEED)


@kernel
def touch_served(cpu: int, address: int) -> int:
    """Write to a page; 0, or -EIO if its data has not come though the monitor is there."""
    result = user_write(cpu, address + 8, address)
    if result < 0:
        return result
    result, value = user_read(cpu, address)
    if result < 0 or value == DATA:
        return result
    # the monitor leaves when it sees the word that stops all; after that pages are empty
    return 0 if read_once(load(cpu + CPU.system) + SYSTEM.stop) else -Errno.EIO


@kernel
def writer_setup(cpu: int) -> int:
    """Take the userfaultfd of the first worker and put the data into a page."""
    source = map_anonymous(cpu, PAGE_SIZE)
    if source < 0:
        return source
    store(cpu + State.AREA, source)
    store(cpu + State.FILE, load(load(cpu + Param.LEADER) + State.FILE))
    return user_write(cpu, source, DATA)


@kernel
def writer_op(cpu: int) -> int:
    """Serve one fault, if one comes."""
    ctx = load(cpu + State.FILE)
    error, address, _flags = userfaultfd_read(cpu, ctx, NAP_NS)
    if error != 0:
        return 0
    copied = userfaultfd_copy(cpu, ctx, address, load(cpu + State.AREA), PAGE_SIZE, 0)
    if copied == -Errno.EEXIST:
        return userfaultfd_wake(cpu, ctx, address, PAGE_SIZE)
    return copied if copied < 0 else 0


@kernel
def writer_leave(cpu: int) -> None:
    """Close the userfaultfd: who waits, or will, is not to wait for ever."""
    userfaultfd_release(cpu, load(cpu + State.FILE))
