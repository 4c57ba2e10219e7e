# SPDX-License-Identifier: MIT
"""The cache of recently found VMAs, one per thread (Linux 5.12, mm/vmacache.c)."""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, VMA, VMACACHE_SIZE, WORD
from spfemu.mm.flags import PMD_SHIFT
from spfemu.primitives import load, read_once, smp_load_acquire, smp_store_release, store


@kernel
def vmacache_hash(addr: int) -> int:
    """Return the offset of the cache's word for `addr`: areas of 2 MiB share one."""
    return ((addr >> PMD_SHIFT) & (VMACACHE_SIZE - 1)) * WORD


@kernel
def vmacache_invalidate(mm: int) -> None:
    """Make all threads forget the VMAs that they have cached.

    Only after the VMA has been unlinked: a speculative lookup that sees the new number must not
    find the VMA in the tree any more, or it would cache it for the locked lookups that follow.
    The release pairs with the acquire in `vmacache_valid`; the kernel relies on its locks here,
    which a speculative lookup does not take.
    """
    smp_store_release(mm + MM.vmacache_seqnum, load(mm + MM.vmacache_seqnum) + 1)


@kernel
def vmacache_valid(cpu: int, mm: int) -> int:
    """Tell whether what this CPU has cached still holds; empty the cache if not.

    The acquire pairs with the release in `vmacache_invalidate`.
    """
    if load(cpu + CPU.mm) != mm:
        return 0
    seqnum = smp_load_acquire(mm + MM.vmacache_seqnum)
    if seqnum == load(cpu + CPU.vmacache_seqnum):
        return 1
    store(cpu + CPU.vmacache_seqnum, seqnum)
    for i in range(VMACACHE_SIZE):
        store(cpu + CPU.vmacache + i * WORD, 0)
    return 0


@kernel
def vmacache_find(cpu: int, mm: int, addr: int) -> int:
    """Return the cached VMA of `mm` that covers `addr`, or 0."""
    if not vmacache_valid(cpu, mm):
        return 0
    slot = vmacache_hash(addr)
    for _ in range(VMACACHE_SIZE):
        vma = load(cpu + CPU.vmacache + slot)
        if vma != 0:
            if read_once(vma + VMA.vm_mm) != mm:
                return 0
            if read_once(vma + VMA.vm_start) <= addr and read_once(vma + VMA.vm_end) > addr:
                return vma
        slot = (slot + WORD) & (VMACACHE_SIZE * WORD - 1)
    return 0


@kernel
def vmacache_update(cpu: int, addr: int, vma: int) -> None:
    """Cache the VMA that a lookup of `addr` has found."""
    if read_once(vma + VMA.vm_mm) == load(cpu + CPU.mm):
        store(cpu + CPU.vmacache + vmacache_hash(addr), vma)


@kernel
def vmacache_flush(cpu: int, mm: int) -> None:
    """Forget the cached VMAs, which are another mm's, and begin to cache those of `mm`."""
    store(cpu + CPU.vmacache_seqnum, smp_load_acquire(mm + MM.vmacache_seqnum))
    for i in range(VMACACHE_SIZE):
        store(cpu + CPU.vmacache + i * WORD, 0)
