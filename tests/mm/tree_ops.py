# SPDX-License-Identifier: MIT
"""Kernel functions that the tests of VMAs and their tree add to the kernel."""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_SIZE, SYSTEM, VMA, WORD
from spfemu.mm.flags import Errno, Map, Prot
from spfemu.mm.mmap_lock import mmap_seq_addr, mmap_seq_read_check, mmap_seq_read_start
from spfemu.mm.rbtree_latch import vma_rb_erase
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.sched import cond_resched
from spfemu.mm.syscalls import sys_mmap, sys_mprotect, sys_munmap
from spfemu.mm.vma import (
    __find_vma,
    detach_vmas_to_be_unmapped,
    find_vma_links,
    vm_area_alloc,
    vm_area_free,
    vma_link,
    vma_unlink_list,
    vmacache_invalidate,
)
from spfemu.primitives import cpu_relax, load, read_once, store, write_once

MAP_FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
STRIDE_PAGES = 8
STRIDE = STRIDE_PAGES * PAGE_SIZE
CHURN_PAGES = 6
"""Pages 1 to 6 of a stride come and go; page 0 is always mapped, page 7 never."""


@kernel
def tree_insert(cpu: int, mm: int, start: int, end: int) -> int:
    """Insert a VMA without merging; returns it, or 0 if the range is taken."""
    overlaps, prev = find_vma_links(mm, start, end)
    if overlaps:
        return 0
    vma = vm_area_alloc(cpu, mm)
    if vma != 0:
        store(vma + VMA.vm_start, start)
        store(vma + VMA.vm_end, end)
        vma_link(mm, vma, prev)
    return vma


@kernel
def tree_erase(cpu: int, mm: int, vma: int) -> int:
    """Take one VMA out and free it; returns the VMA behind it."""
    following = detach_vmas_to_be_unmapped(
        mm, vma, load(vma + VMA.vm_prev), load(vma + VMA.vm_start) + 1
    )
    vm_area_free(cpu, vma)
    return following


@kernel
def map_anchors(cpu: int, first: int, count: int) -> int:
    """Map page 0 of each stride."""
    for i in range(count):
        result = sys_mmap(cpu, first + i * STRIDE, PAGE_SIZE, Prot.READ, MAP_FIXED)
        if result < 0:
            return result
    return 0


@kernel
def next_random(cpu: int) -> int:
    """Step the CPU's xorshift generator (62 bits)."""
    x = load(cpu + CPU.random)
    x = x ^ (x << 13) & ((1 << 62) - 1)
    x = x ^ (x >> 7)
    x = x ^ (x << 17) & ((1 << 62) - 1)
    store(cpu + CPU.random, x)
    return x


@kernel
def churn(cpu: int, first: int, mask: int, pause: int) -> int:
    """Map, unmap and protect the pages between the anchors; protect the anchors too.

    Goes on until SYSTEM.stop; returns 0 or the first error.
    """
    stop = load(cpu + CPU.system) + SYSTEM.stop
    while read_once(stop) == 0:
        x = next_random(cpu)
        stride = first + (x >> 8 & mask) * STRIDE
        page = 1 + (x >> 20) % CHURN_PAGES
        pages = 1 + (x >> 30) % CHURN_PAGES
        if page + pages > STRIDE_PAGES - 1:
            pages = STRIDE_PAGES - 1 - page
        prot = Prot.READ | (x >> 3 & 1) * Prot.WRITE
        if x & 3 == 0:
            result = sys_munmap(cpu, stride + page * PAGE_SIZE, pages * PAGE_SIZE)
        elif x & 3 == 1:
            result = sys_mprotect(cpu, stride, PAGE_SIZE, prot)
        else:
            result = sys_mmap(cpu, stride + page * PAGE_SIZE, pages * PAGE_SIZE, prot, MAP_FIXED)
        if result < 0:
            return result
        for _ in range(pause):
            cpu_relax()
        cond_resched(cpu)
    return 0


@kernel
def is_slot(cpu: int, vma: int) -> int:
    """Tell whether `vma` is a slot of the slab."""
    slab = load(load(cpu + CPU.system) + SYSTEM.vmas)
    return slab <= vma < load(cpu + CPU.vma_slab_end) and (vma - slab) % VMA.SIZE == 0


@kernel
def probe(cpu: int, mm: int, addr: int, mapped: int) -> int:
    """Look `addr` up speculatively.

    Returns 1 if no writer overlapped, 0 if one did, -EFAULT if the answer is wrong though none
    did, -EINVAL if it is no slot of the slab.
    """
    seq = mmap_seq_read_start(mm)
    rcu_read_lock(cpu)
    vma = __find_vma(cpu, mm, addr)
    if vma != 0 and not is_slot(cpu, vma):
        rcu_read_unlock(cpu)
        return -Errno.EINVAL
    start = load(vma + VMA.vm_start) if vma != 0 else addr + 1
    end = load(vma + VMA.vm_end) if vma != 0 else addr + 1
    rcu_read_unlock(cpu)
    if seq & 1 or not mmap_seq_read_check(cpu, mm, seq, Event.SPF_ABORT_VMA_COPY):
        return 0
    if end <= addr:
        return -Errno.EFAULT
    return 1 if (start <= addr) == mapped else -Errno.EFAULT


@kernel
def probe_loop(cpu: int, first: int, mask: int) -> int:
    """Probe until SYSTEM.stop or a wrong answer, which is returned.

    Counts in CPU.operations probes that no writer overlapped, in CPU.progress the others.
    """
    mm = load(cpu + CPU.mm)
    stop = load(cpu + CPU.system) + SYSTEM.stop
    while read_once(stop) == 0:
        x = next_random(cpu)
        mapped = x & 1
        addr = first + (x >> 8 & mask) * STRIDE + (0 if mapped else STRIDE - PAGE_SIZE)
        result = probe(cpu, mm, addr, mapped)
        if result < 0:
            return result
        word = cpu + (CPU.operations if result else CPU.progress)
        store(word, load(word) + 1)
        cond_resched(cpu)
    return 0


@kernel
def blind_read_start(mm: int) -> int:
    """Stand in for mmap_seq_read_start: there is never a writer."""
    return 0


@kernel
def blind_read_check(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Stand in for mmap_seq_read_check: there was no writer."""
    return 1


@kernel
def detach_seqnum_first(mm: int, vma: int, prev: int, end: int) -> int:
    """Stand in for detach_vmas_to_be_unmapped (one VMA): caches are invalidated too early."""
    vmacache_invalidate(mm)
    following = load(vma + VMA.vm_next)
    vma_rb_erase(mm, vma)
    vma_unlink_list(mm, prev, following)
    write_once(vma + VMA.vm_next, 0)
    store(mm + MM.map_count, load(mm + MM.map_count) - 1)
    return following


@kernel
def record_unmap_region(cpu: int, mm: int, vma: int, prev_end: int, next_start: int) -> None:
    """Stand in for unmap_region: note in CPU.workload what it is called with and when."""
    words = cpu + CPU.workload
    store(words, load(words) + 1)
    store(words + 1 * WORD, prev_end)
    store(words + 2 * WORD, next_start)
    store(words + 3 * WORD, load(cpu + CPU.mmap_lock_held))
    store(words + 4 * WORD, read_once(mmap_seq_addr(mm)) & 1)
    store(words + 5 * WORD, load(vma + VMA.vm_start))
    while vma != 0:
        store(words + 6 * WORD, load(vma + VMA.vm_end))
        vma = load(vma + VMA.vm_next)
