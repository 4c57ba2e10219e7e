# SPDX-License-Identifier: MIT
"""Kernel functions that several workloads use."""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SHIFT, PAGE_SIZE, SYSTEM
from spfemu.mm.file_table import sys_create
from spfemu.mm.flags import FileOps, Map, Prot
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.sched import cond_resched, cpu_sleep
from spfemu.mm.syscalls import sys_mmap, sys_mmap_file
from spfemu.primitives import load, read_cycles, read_once, store
from spfemu.workloads.parameters import Param, State

ANONYMOUS = int(Map.PRIVATE | Map.ANONYMOUS)
READ_WRITE = int(Prot.READ | Prot.WRITE)
RANDOM_MASK = (1 << 62) - 1
SLEEP_NS_MAX = 50_000_000
"""Longest sleep at once: a writer still notices soon that it shall stop."""


@kernel
def map_anonymous(cpu: int, length: int) -> int:
    """Map `length` bytes of private memory wherever there is room; the address or -errno."""
    return sys_mmap(cpu, 0, length, READ_WRITE, ANONYMOUS)


@kernel
def share_anonymous(cpu: int, length: int) -> tuple[int, int]:
    """Map so much for all workers of the mm; (its address or -errno, 1 if this is who mapped it).

    The first worker does, and leaves the address in State.AREA for the others.
    """
    leader = load(cpu + Param.LEADER)
    if leader != cpu:
        return load(leader + State.AREA), 0
    return map_anonymous(cpu, length), 1


@kernel
def create_own_file(cpu: int, size: int) -> int:
    """Make a file of `size` bytes and remember it; 0 or -errno."""
    file = sys_create(cpu, size, FileOps.GENERIC)
    if file < 0:
        return file
    store(cpu + State.FILE, file)
    return 0


@kernel
def map_own_file(cpu: int, length: int, flags: int) -> int:
    """Map the worker's file from its beginning; the address or -errno."""
    return sys_mmap_file(cpu, 0, length, READ_WRITE, flags, load(cpu + State.FILE), 0)


@kernel
def write_pages(cpu: int, start: int, end: int) -> int:
    """Write a word to every page of [start, end); 0 or the first error."""
    address = start
    while address < end:
        result = user_write(cpu, address, address)
        if result < 0:
            return result
        address += PAGE_SIZE
    return 0


@kernel
def read_pages(cpu: int, start: int, end: int) -> int:
    """Read a word of every page of [start, end); 0 or the first error."""
    address = start
    while address < end:
        result, _value = user_read(cpu, address)
        if result < 0:
            return result
        address += PAGE_SIZE
    return 0


@kernel
def map_ring(cpu: int) -> int:
    """Map a ring of areas for this worker, `areas` in use and one more; 0 or -errno."""
    stride = pages_of(load(cpu + Param.SIZE)) << PAGE_SHIFT
    first = map_anonymous(cpu, (load(cpu + Param.AREAS) + 1) * stride)
    if first < 0:
        return first
    store(cpu + State.AREA, first)
    store(cpu + State.STRIDE, stride)
    store(cpu + State.TURN, 0)
    return 0


@kernel
def ring_area(cpu: int, ahead: int) -> int:
    """Address of the ring's present area (0 ahead), or of the next (1), which is the oldest."""
    turn = load(cpu + State.TURN) + ahead
    if turn > load(cpu + Param.AREAS):
        turn = 0
    return load(cpu + State.AREA) + turn * load(cpu + State.STRIDE)


@kernel
def next_in_ring(cpu: int) -> None:
    """Go on to the next area."""
    turn = load(cpu + State.TURN)
    store(cpu + State.TURN, turn + 1 if turn < load(cpu + Param.AREAS) else 0)


@kernel
def workload_random(cpu: int) -> int:
    """Draw the next random number of this CPU, 62 bits (Marsaglia's xorshift)."""
    x = load(cpu + CPU.random)
    x = (x ^ (x << 13)) & RANDOM_MASK
    x = x ^ (x >> 7)
    x = (x ^ (x << 17)) & RANDOM_MASK
    store(cpu + CPU.random, x)
    return x


@kernel
def random_below(cpu: int, limit: int) -> int:
    """Draw a number from 0 to limit - 1; `limit` is below 2^31."""
    return ((workload_random(cpu) >> 31) * limit) >> 31


@kernel
def pages_of(length: int) -> int:
    """Whole pages of `length` bytes, rounded up."""
    return (length + PAGE_SIZE - 1) >> PAGE_SHIFT


@kernel
def wait_for_turn(cpu: int) -> int:
    """Sleep until the writer's next operation is due; 1 if it is, 0 if the run stops.

    A writer that is late does not catch up: its next turn counts from now.
    """
    period = load(cpu + Param.PERIOD)
    if period == 0:
        return 1
    stop = load(cpu + CPU.system) + SYSTEM.stop
    due = load(cpu + State.NEXT)
    now = read_cycles()
    while now < due:
        if read_once(stop) != 0:
            return 0
        left = ((due - now) * load(cpu + Param.NS_PER_CYCLE)) >> 20
        if left > SLEEP_NS_MAX:
            left = SLEEP_NS_MAX
        cpu_sleep(cpu, cpu + State.TIMER, 0, left)
        cond_resched(cpu)
        now = read_cycles()
    store(cpu + State.NEXT, now + period)
    return 1
