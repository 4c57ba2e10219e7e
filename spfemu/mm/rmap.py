# SPDX-License-Identifier: MIT
"""anon_vma: the object by which an anonymous page finds the VMAs that may map it.

Answers to mm/rmap.c (Linux 5.12).  There is no fork, so a VMA has one anon_vma or none and no
chain of them, and an anon_vma lives as long as VMAs point at it.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ANON_VMA, CPU, MM, PAGE_SHIFT, SYSTEM, VMA
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import Errno, Vm
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    load,
    read_once,
    smp_store_release,
    store,
    write_once,
)

VM_ACCESS_FLAGS = int(Vm.READ | Vm.WRITE | Vm.EXEC)
ANON_VMA_CACHE_BATCH = 16
"""Free anon_vmas that move between a CPU's cache and the global list at once."""
ANON_VMA_CACHE_MAX = 2 * ANON_VMA_CACHE_BATCH
"""Most free anon_vmas in a CPU's cache."""


@kernel
def anon_vma_alloc(cpu: int) -> int:
    """Return an anon_vma with one reference, or 0 if the slab is used up."""
    if load(cpu + CPU.anon_vma_count) == 0:
        anon_vma_slab_refill(cpu)
    anon_vma = load(cpu + CPU.anon_vma_list)
    if anon_vma == 0:
        return 0
    store(cpu + CPU.anon_vma_list, load(anon_vma + ANON_VMA.next_free))
    store(cpu + CPU.anon_vma_count, load(cpu + CPU.anon_vma_count) - 1)
    store(anon_vma + ANON_VMA.generation, load(anon_vma + ANON_VMA.generation) + 1)
    store(anon_vma + ANON_VMA.next_free, 0)
    store(anon_vma + ANON_VMA.in_use, 1)
    write_once(anon_vma + ANON_VMA.refcount, 1)
    return anon_vma


@kernel
def anon_vma_free(cpu: int, anon_vma: int) -> None:
    """Put an anon_vma whose last reference is gone into this CPU's cache."""
    store(anon_vma + ANON_VMA.in_use, 0)
    if load(cpu + CPU.anon_vma_count) >= ANON_VMA_CACHE_MAX:
        anon_vma_slab_drain(cpu)
    store(anon_vma + ANON_VMA.next_free, load(cpu + CPU.anon_vma_list))
    store(cpu + CPU.anon_vma_list, anon_vma)
    store(cpu + CPU.anon_vma_count, load(cpu + CPU.anon_vma_count) + 1)


@slowpath
def anon_vma_slab_refill(cpu: int) -> None:
    """Move up to a batch of free anon_vmas from the global list into this CPU's empty cache."""
    system = load(cpu + CPU.system)
    local = 0
    count = 0
    spin_lock(cpu, system + SYSTEM.anon_vma_lock)
    anon_vma = load(system + SYSTEM.anon_vma_free)
    while anon_vma != 0 and count < ANON_VMA_CACHE_BATCH:
        following = load(anon_vma + ANON_VMA.next_free)
        store(anon_vma + ANON_VMA.next_free, local)
        local = anon_vma
        count += 1
        anon_vma = following
    store(system + SYSTEM.anon_vma_free, anon_vma)
    spin_unlock(system + SYSTEM.anon_vma_lock)
    store(cpu + CPU.anon_vma_list, local)
    store(cpu + CPU.anon_vma_count, count)


@slowpath
def anon_vma_slab_drain(cpu: int) -> None:
    """Move a batch of free anon_vmas from this CPU's cache to the global list."""
    system = load(cpu + CPU.system)
    anon_vma = load(cpu + CPU.anon_vma_list)
    spin_lock(cpu, system + SYSTEM.anon_vma_lock)
    free = load(system + SYSTEM.anon_vma_free)
    for _ in range(ANON_VMA_CACHE_BATCH):
        following = load(anon_vma + ANON_VMA.next_free)
        store(anon_vma + ANON_VMA.next_free, free)
        free = anon_vma
        anon_vma = following
    store(system + SYSTEM.anon_vma_free, free)
    spin_unlock(system + SYSTEM.anon_vma_lock)
    store(cpu + CPU.anon_vma_list, anon_vma)
    store(cpu + CPU.anon_vma_count, load(cpu + CPU.anon_vma_count) - ANON_VMA_CACHE_BATCH)


@kernel
def get_anon_vma(anon_vma: int) -> None:
    """Count one VMA more; the caller holds a VMA that points at it in place."""
    atomic_fetch_add_relaxed(anon_vma + ANON_VMA.refcount, 1)


@kernel
def put_anon_vma(cpu: int, anon_vma: int) -> None:
    """Count one VMA less and free the anon_vma with the last.

    The full order of the decrement puts every use of the other VMAs before the freeing.
    """
    count = atomic_fetch_add(anon_vma + ANON_VMA.refcount, -1)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    if count == 1:
        anon_vma_free(cpu, anon_vma)


@kernel
def anon_vma_clone(dst: int, src: int) -> None:
    """Let `dst`, which has none, share the anon_vma of `src`, if there is one.

    Needs the mmap lock for writing.  The release pairs with the dependent use of the pointer by
    a speculative fault that copies `dst`.
    """
    anon_vma = load(src + VMA.anon_vma)
    if anon_vma != 0:
        get_anon_vma(anon_vma)
        smp_store_release(dst + VMA.anon_vma, anon_vma)


@kernel
def unlink_anon_vmas(cpu: int, vma: int) -> None:
    """Drop the anon_vma of a VMA that is being freed; it maps no page any more."""
    anon_vma = load(vma + VMA.anon_vma)
    if anon_vma != 0:
        write_once(vma + VMA.anon_vma, 0)
        put_anon_vma(cpu, anon_vma)


@kernel
def anon_vma_compatible(lower: int, upper: int) -> int:
    """Tell whether two VMAs touch and would be one, but for their access rights."""
    if load(lower + VMA.vm_end) != load(upper + VMA.vm_start):
        return 0
    if (load(lower + VMA.vm_flags) ^ load(upper + VMA.vm_flags)) & ~VM_ACCESS_FLAGS:
        return 0
    pages = (load(upper + VMA.vm_start) - load(lower + VMA.vm_start)) >> PAGE_SHIFT
    return load(upper + VMA.vm_pgoff) == load(lower + VMA.vm_pgoff) + pages


@kernel
def find_mergeable_anon_vma(vma: int) -> int:
    """Return the anon_vma of a neighbour with which `vma` may be merged one day, or 0.

    Needs the mmap lock, which keeps the neighbours; another fault may be giving them an anon_vma
    right now, so it is read once.  The next VMA comes before the previous one, as in the kernel.
    """
    following = load(vma + VMA.vm_next)
    if following != 0 and anon_vma_compatible(vma, following):
        anon_vma = read_once(following + VMA.anon_vma)
        if anon_vma != 0:
            return anon_vma
    prev = load(vma + VMA.vm_prev)
    if prev != 0 and anon_vma_compatible(prev, vma):
        return read_once(prev + VMA.anon_vma)
    return 0


@kernel
def anon_vma_prepare(cpu: int, vma: int) -> int:
    """See that `vma` has an anon_vma; returns 0 or -ENOMEM.  Needs the mmap lock for reading."""
    if read_once(vma + VMA.anon_vma) != 0:
        return 0
    return __anon_vma_prepare(cpu, vma)


@slowpath
def __anon_vma_prepare(cpu: int, vma: int) -> int:
    """Find or make an anon_vma, and set it unless another fault has set one meanwhile.

    mmap_seq does not move here, so a speculative fault may copy the VMA at any moment of this:
    the release pairs with its dependent use of the pointer, so that it finds the object ready.
    """
    mm = load(vma + VMA.vm_mm)
    anon_vma = find_mergeable_anon_vma(vma)
    if anon_vma != 0:
        # the neighbour's own reference lasts as long as the mmap lock is held
        get_anon_vma(anon_vma)
    else:
        anon_vma = anon_vma_alloc(cpu)
        if anon_vma == 0:
            return -Errno.ENOMEM
    spin_lock(cpu, mm + MM.page_table_lock)
    lost = load(vma + VMA.anon_vma)
    if lost == 0:
        smp_store_release(vma + VMA.anon_vma, anon_vma)
    spin_unlock(mm + MM.page_table_lock)
    if lost != 0:
        put_anon_vma(cpu, anon_vma)
    return 0
