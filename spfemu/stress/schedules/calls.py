# SPDX-License-Identifier: MIT
"""Calls of the threads that a schedule steps: each runs its CPU while it is inside, else it idles.

An idle CPU needs no IPI, so a writer that flushes waits only for CPUs inside a call.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, SWAP_CLUSTER_MAX
from spfemu.mm.direct_io import bio_map_user, bio_release_pages
from spfemu.mm.file_calls import sys_ftruncate, sys_msync, sys_pread, sys_pwrite
from spfemu.mm.file_table import sys_close, sys_create
from spfemu.mm.flags import Madv, Map, Msync, Prot
from spfemu.mm.fork import exit_mm, mmput, sys_fork
from spfemu.mm.gup import get_user_pages_fast, put_user_page
from spfemu.mm.khugepaged import hpage_collapse
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.mmu_notifier import mmu_notifier_register, mmu_notifier_unregister
from spfemu.mm.mremap import sys_mremap
from spfemu.mm.numa import task_numa_work
from spfemu.mm.sched import cpu_idle_enter, cpu_idle_exit
from spfemu.mm.secondary_mmu import notifier_read
from spfemu.mm.syscalls import (
    sys_madvise,
    sys_mmap,
    sys_mmap_file,
    sys_mprotect,
    sys_munmap,
)
from spfemu.mm.vmscan import shrink_mms
from spfemu.primitives import load

RW = int(Prot.READ | Prot.WRITE)
PRIVATE = int(Map.PRIVATE | Map.ANONYMOUS)
FIXED = PRIVATE | int(Map.FIXED)


@kernel
def thread_write(cpu: int, address: int, value: int) -> int:
    cpu_idle_exit(cpu)
    result = user_write(cpu, address, value)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_read(cpu: int, address: int) -> tuple[int, int]:
    cpu_idle_exit(cpu)
    error, value = user_read(cpu, address)
    cpu_idle_enter(cpu)
    return error, value


@kernel
def thread_mmap(cpu: int, address: int, length: int, prot: int, flags: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mmap(cpu, address, length, prot, flags)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_mmap_file(
    cpu: int, address: int, length: int, prot: int, flags: int, file: int, offset: int
) -> int:
    cpu_idle_exit(cpu)
    result = sys_mmap_file(cpu, address, length, prot, flags, file, offset)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_create(cpu: int, size: int, i_fop: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_create(cpu, size, i_fop)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_close(cpu: int, file: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_close(cpu, file)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_pwrite(cpu: int, file: int, offset: int, value: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_pwrite(cpu, file, offset, value)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_pread(cpu: int, file: int, offset: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_pread(cpu, file, offset)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_ftruncate(cpu: int, file: int, size: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_ftruncate(cpu, file, size)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_msync(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_msync(cpu, address, length, Msync.SYNC)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_remove(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_madvise(cpu, address, length, Madv.REMOVE)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_munmap(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_munmap(cpu, address, length)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_mprotect(cpu: int, address: int, length: int, prot: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mprotect(cpu, address, length, prot)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_dontneed(cpu: int, address: int, length: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_madvise(cpu, address, length, Madv.DONTNEED)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_advise(cpu: int, address: int, length: int, advice: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_madvise(cpu, address, length, advice)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_reclaim(cpu: int) -> int:
    """Evict what has not been used since the last time."""
    cpu_idle_exit(cpu)
    result = shrink_mms(cpu, SWAP_CLUSTER_MAX)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_remap(cpu: int, address: int, length: int) -> tuple[int, int]:
    """Unmap a range, map it again, read its first word: nothing old may be there."""
    cpu_idle_exit(cpu)
    error = sys_munmap(cpu, address, length)
    value = 0
    if error == 0:
        sys_mmap(cpu, address, length, RW, FIXED)
        error, value = user_read(cpu, address)
    cpu_idle_enter(cpu)
    return error, value


@kernel
def thread_fork(cpu: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_fork(cpu)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_pin(cpu: int, address: int, nr_pages: int) -> int:
    cpu_idle_exit(cpu)
    result = bio_map_user(cpu, address, nr_pages)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_unpin(cpu: int) -> int:
    cpu_idle_exit(cpu)
    bio_release_pages(cpu)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_get(cpu: int, address: int, nr_pages: int) -> int:
    cpu_idle_exit(cpu)
    result = get_user_pages_fast(cpu, address, nr_pages, 0, cpu + CPU.gup_pages)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_put(cpu: int) -> int:
    cpu_idle_exit(cpu)
    put_user_page(cpu, load(cpu + CPU.gup_pages))
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_exit(cpu: int, mm: int) -> int:
    """Go over to another mm for good."""
    cpu_idle_exit(cpu)
    exit_mm(cpu, mm)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_mmput(cpu: int, mm: int) -> int:
    """Drop a reference to another mm, which ends if it was the last."""
    cpu_idle_exit(cpu)
    mmput(cpu, mm)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_collapse(cpu: int, start: int) -> int:
    """Collapse 2 MiB to a huge page, as MADV_COLLAPSE does."""
    cpu_idle_exit(cpu)
    result = hpage_collapse(cpu, load(cpu + CPU.mm), start, 1)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_scan(cpu: int) -> int:
    """Let pages fault once more, for NUMA placement."""
    cpu_idle_exit(cpu)
    task_numa_work(cpu, load(cpu + CPU.mm))
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_mremap(cpu: int, addr: int, old_len: int, new_len: int, flags: int, to: int) -> int:
    cpu_idle_exit(cpu)
    result = sys_mremap(cpu, addr, old_len, new_len, flags, to)
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_subscribe(cpu: int) -> int:
    """Subscribe to changes of mappings; returns the subscription."""
    cpu_idle_exit(cpu)
    result = mmu_notifier_register(cpu, load(cpu + CPU.mm))
    cpu_idle_enter(cpu)
    return result


@kernel
def thread_unsubscribe(cpu: int, subscription: int) -> int:
    cpu_idle_exit(cpu)
    mmu_notifier_unregister(cpu, subscription)
    cpu_idle_enter(cpu)
    return 0


@kernel
def thread_secondary_read(cpu: int, subscription: int, address: int) -> tuple[int, int]:
    """Read as a subscriber does, through its own translations."""
    cpu_idle_exit(cpu)
    error, value = notifier_read(cpu, subscription, address)
    cpu_idle_enter(cpu)
    return error, value
