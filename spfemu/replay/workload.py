# SPDX-License-Identifier: MIT
"""Make the recorded calls of a real program, each thread its own, touching what is mapped.

A worker is a thread, and an operation one pass through its calls.  The first worker begins a pass
with the address space that execve has left, the others wait until a thread makes them, as they did
when they were recorded, and at the end the first waits for all.  Nothing else keeps threads in
step: calls of different threads overlap as they may, and one that fails for it is passed over.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_SHIFT, SYSTEM, WORD
from spfemu.mm.file_calls import sys_msync
from spfemu.mm.file_table import sys_create
from spfemu.mm.flags import FileOps, Prot
from spfemu.mm.fork import mmput, sys_fork
from spfemu.mm.mlock import sys_mlock, sys_mlock2, sys_mlockall, sys_munlock, sys_munlockall
from spfemu.mm.mremap import sys_mremap
from spfemu.mm.sched import cond_resched, cpu_sleep
from spfemu.mm.syscalls import (
    sys_brk,
    sys_madvise,
    sys_mincore,
    sys_mmap,
    sys_mmap_file,
    sys_mprotect,
    sys_munmap,
)
from spfemu.primitives import (
    atomic_fetch_add,
    futex_wake,
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
)
from spfemu.replay.encoding import ENTRY_SIZE, Step, Word
from spfemu.replay.placing import place_mapping
from spfemu.trace.calls import Call
from spfemu.workloads.common import pages_of, read_pages, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, State

DEFAULTS = Parameters(size=1 << 30, pages=16)
"""`pages` are touched at most of each mapping."""
FORKS = True
PAGES_SHARED = True
ACCESSIBLE = int(Prot.READ | Prot.WRITE)
FILE_BYTES = 1 << 40
SLEEP_NS = 10_000_000


def needs(parameters: Parameters) -> Needs:
    """Nothing is known here: the table says it."""
    return Needs(0, 0)


def iterations(parameters: Parameters) -> int:
    """One pass."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Let the first worker make the files."""
    if load(cpu + Param.LEADER) != cpu:
        return 0
    slot = load(cpu + Param.TRACE_FILES)
    for i in range(load(cpu + Param.TRACE_NR_FILES)):
        file = sys_create(cpu, FILE_BYTES, FileOps.GENERIC)
        if file < 0:
            return file
        store(slot + i * WORD, file)
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Make one pass, in step with the other threads at its begin and end."""
    leader = load(cpu + Param.LEADER)
    number = load(cpu + State.TRACE_PASS) + 1
    if leader == cpu:
        clear_address_space(cpu)
    elif wait_until(cpu, cpu + State.TRACE_START, number) == 0:
        return 0
    if make_calls(cpu, number) == 0:
        return 0
    store(cpu + State.TRACE_PASS, number)
    if leader == cpu:
        others = load(cpu + Param.WORKERS) - 1
        wait_until(cpu, cpu + State.TRACE_ARRIVED, number * others)
        return 0
    # seq_cst, so also a release: pairs with the acquire of the first worker's wait_until
    atomic_fetch_add(leader + State.TRACE_ARRIVED, 1)
    futex_wake(leader + State.TRACE_ARRIVED, 1)
    return 0


@kernel
def wait_until(cpu: int, word: int, value: int) -> int:
    """Sleep until a word that counts up has reached `value`; 1, or 0 if the run stops."""
    stop = load(cpu + CPU.system) + SYSTEM.stop
    # pairs with the release of who counts it up
    seen = smp_load_acquire(word)
    while seen < value:
        if read_once(stop) != 0:
            return 0
        cpu_sleep(cpu, word, seen, SLEEP_NS)
        store(cpu + CPU.progress, load(cpu + CPU.progress) + 1)
        cond_resched(cpu)
        seen = smp_load_acquire(word)
    return 1


@kernel
def clear_address_space(cpu: int) -> None:
    """Unmap everything; no other thread has begun."""
    mm = load(cpu + CPU.mm)
    sys_munmap(cpu, 0, load(mm + MM.task_size))


@kernel
def make_calls(cpu: int, number: int) -> int:
    """Make all calls of this thread; 1, or 0 if the run stops on the way."""
    stop = load(cpu + CPU.system) + SYSTEM.stop
    entry = load(cpu + Param.TRACE_FIRST)
    end = load(cpu + Param.TRACE_END)
    while entry < end:
        if read_once(stop) != 0:
            return 0
        kind = load(entry)
        if kind >= Step.PLACE:
            make_step(cpu, entry, kind, number)
        elif kind == Call.MMAP:
            make_mmap(cpu, entry)
        elif kind <= Call.MADVISE:
            make_call(cpu, entry, kind)
        else:
            make_rare_call(cpu, entry, kind)
        cond_resched(cpu)
        entry += ENTRY_SIZE
    return 1


@kernel
def make_mmap(cpu: int, entry: int) -> None:
    """Map where it was mapped, and touch it."""
    start = load(entry + Word.A)
    length = load(entry + Word.B)
    prot = load(entry + Word.C)
    flags = load(entry + Word.D)
    slot = load(entry + Word.FILE)
    if slot == 0:
        result = sys_mmap(cpu, start, length, prot, flags)
    else:
        offset = load(entry + Word.OFFSET)
        result = sys_mmap_file(cpu, start, length, prot, flags, load(slot), offset)
    if result >= 0:
        touch_range(cpu, result, length, prot)


@kernel
def make_call(cpu: int, entry: int, kind: int) -> None:
    """Make one of the frequent calls, and touch what it has made accessible."""
    start = load(entry + Word.A)
    length = load(entry + Word.B)
    third = load(entry + Word.C)
    if kind == Call.MUNMAP:
        sys_munmap(cpu, start, length)
    elif kind == Call.MADVISE:
        sys_madvise(cpu, start, length, third)
    elif kind == Call.MPROTECT:
        if sys_mprotect(cpu, start, length, third) == 0:
            touch_range(cpu, start, length, third)
    elif kind == Call.BRK:
        # second and third: what has been added
        if sys_brk(cpu, start) == start:
            touch_range(cpu, length, third, ACCESSIBLE)
    else:
        flags = load(entry + Word.D)
        result = sys_mremap(cpu, start, length, third, flags, load(entry + Word.E))
        if result >= 0 and third > length:
            touch_range(cpu, result + length, third - length, ACCESSIBLE)


@kernel
def make_rare_call(cpu: int, entry: int, kind: int) -> None:
    """Make one of the other calls."""
    start = load(entry + Word.A)
    length = load(entry + Word.B)
    if kind == Call.MLOCK:
        sys_mlock(cpu, start, length)
    elif kind == Call.MLOCK2:
        sys_mlock2(cpu, start, length, load(entry + Word.C))
    elif kind == Call.MUNLOCK:
        sys_munlock(cpu, start, length)
    elif kind == Call.MLOCKALL:
        sys_mlockall(cpu, start)
    elif kind == Call.MUNLOCKALL:
        sys_munlockall(cpu)
    elif kind == Call.MSYNC:
        sys_msync(cpu, start, length, load(entry + Word.C))
    else:
        sys_mincore(cpu, start, length, 0)


@kernel
def make_step(cpu: int, entry: int, kind: int, number: int) -> None:
    """Do what is no call on memory."""
    first = load(entry + Word.A)
    if kind == Step.START:
        # pairs with the acquire of the new thread's wait_until
        smp_store_release(first + State.TRACE_START, number)
        futex_wake(first + State.TRACE_START, 1)
    elif kind == Step.SET_BRK:
        mm = load(cpu + CPU.mm)
        store(mm + MM.start_brk, first)
        store(mm + MM.brk, first)
    elif kind == Step.FORK:
        child = sys_fork(cpu)
        if child > 0:
            mmput(cpu, child)
    else:
        make_place(cpu, entry)


@kernel
def make_place(cpu: int, entry: int) -> None:
    """Map a range that execve has mapped, and touch it."""
    start = load(entry + Word.A)
    end = load(entry + Word.B)
    slot = load(entry + Word.FILE)
    file = load(slot) if slot != 0 else 0
    vm_flags = load(entry + Word.C)
    if place_mapping(cpu, start, end, vm_flags, file, load(entry + Word.OFFSET)) == 0:
        touch_range(cpu, start, end - start, load(entry + Word.D))


@kernel
def touch_range(cpu: int, start: int, length: int, prot: int) -> None:
    """Write, or read, the first pages of a range, as many as `pages` says.

    Another thread may unmap or protect them meanwhile: then the rest is left.
    """
    pages = pages_of(length)
    limit = load(cpu + Param.PAGES)
    pages = pages if pages < limit else limit
    end = start + (pages << PAGE_SHIFT)
    if prot & Prot.WRITE:
        write_pages(cpu, start, end)
    elif prot & Prot.READ:
        read_pages(cpu, start, end)
