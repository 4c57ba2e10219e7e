# SPDX-License-Identifier: MIT
"""Kernel functions that a host program has in the place of the emulated kernel's.

Addresses are those of the real process, accesses are real loads and stores, faults are the real
kernel's.  A worker is a thread; there is no emulated CPU to keep accounts for.
"""

import platform
from typing import NamedTuple

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, WORD
from spfemu.mm.config import CONFIG_LATENCY
from spfemu.mm.latency import FAULT_LATENCY, record_latency
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    futex_wait,
    raw_syscall,
    read_cycles,
    read_once,
    write_once,
)


class _Numbers(NamedTuple):
    mmap: int
    munmap: int
    mprotect: int
    madvise: int
    brk: int
    mremap: int
    mincore: int
    mlock: int
    munlock: int
    mlock2: int
    memfd_create: int
    ftruncate: int


# include/uapi/asm-generic/unistd.h: what every architecture but the oldest uses
_GENERIC = _Numbers(222, 215, 226, 233, 214, 216, 232, 228, 229, 284, 279, 46)
_NUMBERS = (
    _Numbers(9, 11, 10, 28, 12, 25, 27, 149, 150, 325, 319, 77)
    if platform.machine() == "x86_64"
    else _GENERIC
)

NR_MMAP = _NUMBERS.mmap
NR_MUNMAP = _NUMBERS.munmap
NR_MPROTECT = _NUMBERS.mprotect
NR_MADVISE = _NUMBERS.madvise
NR_BRK = _NUMBERS.brk
NR_MREMAP = _NUMBERS.mremap
NR_MINCORE = _NUMBERS.mincore
NR_MLOCK = _NUMBERS.mlock
NR_MUNLOCK = _NUMBERS.munlock
NR_MLOCK2 = _NUMBERS.mlock2
NR_MEMFD_CREATE = _NUMBERS.memfd_create
NR_FTRUNCATE = _NUMBERS.ftruncate
NO_FILE = -1
WORD_MASK = -WORD


@kernel
def sys_mmap(cpu: int, addr: int, length: int, prot: int, flags: int) -> int:
    """mmap(2) of anonymous memory; the address or a negative errno."""
    count_vm_event(cpu, Event.CALL_MMAP)
    return raw_syscall(NR_MMAP, addr, length, prot, flags, NO_FILE, 0)


@kernel
def sys_mmap_file(
    cpu: int, addr: int, length: int, prot: int, flags: int, file: int, offset: int
) -> int:
    """mmap(2) of a file descriptor; the address or a negative errno."""
    count_vm_event(cpu, Event.CALL_MMAP)
    return raw_syscall(NR_MMAP, addr, length, prot, flags, file, offset)


@kernel
def sys_create(cpu: int, size: int, i_fop: int) -> int:
    """Make a file of `size` bytes in memory; its descriptor or a negative errno.

    Its name is empty: the first word of a TLB that nobody uses here.
    """
    file = raw_syscall(NR_MEMFD_CREATE, cpu + CPU.tlb, 0, 0, 0, 0, 0)
    if file < 0:
        return file
    result = raw_syscall(NR_FTRUNCATE, file, size, 0, 0, 0, 0)
    return result if result < 0 else file


@kernel
def sys_munmap(cpu: int, addr: int, length: int) -> int:
    """munmap(2)."""
    count_vm_event(cpu, Event.CALL_MUNMAP)
    return raw_syscall(NR_MUNMAP, addr, length, 0, 0, 0, 0)


@kernel
def sys_mprotect(cpu: int, addr: int, length: int, prot: int) -> int:
    """mprotect(2)."""
    count_vm_event(cpu, Event.CALL_MPROTECT)
    return raw_syscall(NR_MPROTECT, addr, length, prot, 0, 0, 0)


@kernel
def sys_madvise(cpu: int, addr: int, length: int, advice: int) -> int:
    """madvise(2)."""
    count_vm_event(cpu, Event.CALL_MADVISE)
    return raw_syscall(NR_MADVISE, addr, length, advice, 0, 0, 0)


@kernel
def sys_brk(cpu: int, brk: int) -> int:
    """Call brk as the kernel has it: the break, moved or not."""
    count_vm_event(cpu, Event.CALL_BRK)
    return raw_syscall(NR_BRK, brk, 0, 0, 0, 0, 0)


@kernel
def sys_mremap(cpu: int, addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> int:
    """mremap(2)."""
    count_vm_event(cpu, Event.CALL_MREMAP)
    return raw_syscall(NR_MREMAP, addr, old_len, new_len, flags, new_addr, 0)


@kernel
def sys_mlock(cpu: int, start: int, length: int) -> int:
    """mlock(2)."""
    return raw_syscall(NR_MLOCK, start, length, 0, 0, 0, 0)


@kernel
def sys_mlock2(cpu: int, start: int, length: int, flags: int) -> int:
    """mlock2(2)."""
    return raw_syscall(NR_MLOCK2, start, length, flags, 0, 0, 0)


@kernel
def sys_munlock(cpu: int, start: int, length: int) -> int:
    """munlock(2)."""
    return raw_syscall(NR_MUNLOCK, start, length, 0, 0, 0, 0)


@kernel
def user_write(cpu: int, address: int, value: int) -> int:
    """Store a word; with CONFIG_LATENCY the access is timed as a fault."""
    started = 0
    if CONFIG_LATENCY:
        started = read_cycles()
    write_once(address & WORD_MASK, value)
    if CONFIG_LATENCY:
        record_latency(cpu, FAULT_LATENCY, read_cycles() - started)
    return 0


@kernel
def user_read(cpu: int, address: int) -> tuple[int, int]:
    """Load a word; with CONFIG_LATENCY the access is timed as a fault."""
    started = 0
    if CONFIG_LATENCY:
        started = read_cycles()
    value = read_once(address & WORD_MASK)
    if CONFIG_LATENCY:
        record_latency(cpu, FAULT_LATENCY, read_cycles() - started)
    return 0, value


@kernel
def cpu_online(cpu: int) -> None:
    """The real CPU runs already."""


@kernel
def cpu_offline(cpu: int) -> None:
    """Nobody waits for it."""


@kernel
def cpu_idle_enter(cpu: int) -> None:
    """Nobody waits for it."""


@kernel
def cpu_idle_exit(cpu: int) -> None:
    """There is nothing to catch up with."""


@kernel
def cond_resched(cpu: int) -> None:
    """The real kernel interrupts whom it likes."""


@kernel
def cpu_sleep(cpu: int, word: int, expected: int, timeout_ns: int) -> int:
    """Sleep on a futex word; results as of `futex_wait`."""
    return futex_wait(word, expected, timeout_ns)


@kernel
def task_tick_numa(cpu: int) -> None:
    """The real kernel scans by itself."""


@kernel
def worker_exit(cpu: int) -> None:
    """Nothing is queued."""
