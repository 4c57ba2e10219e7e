# SPDX-License-Identifier: MIT
"""anon_vma: the object by which an anonymous page finds the VMAs that may map it.

Answers to mm/rmap.c (Linux 5.12).  Differs in that an anon_vma lists its VMAs instead of having an
interval tree of them, that the list is guarded by a spinlock, and in that the anon_vma of a VMA's
own pages is linked by a chain inside the VMA, so that processes that do not fork allocate none.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ANON_VMA, ANON_VMA_CHAIN, CPU, MM, PAGE_SHIFT, SYSTEM, VMA
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import Errno, Vm
from spfemu.mm.slab import slab_cache_give, slab_cache_take, slab_give, slab_take
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import (
    load,
    read_once,
    smp_store_release,
    store,
    write_once,
)

VM_ACCESS_FLAGS = int(Vm.READ | Vm.WRITE | Vm.EXEC)


@kernel
def anon_vma_alloc(cpu: int) -> int:
    """Return an anon_vma that is its own root and linked to no VMA, or 0 if there is none."""
    anon_vma = slab_cache_take(
        cpu,
        CPU.anon_vma_list,
        SYSTEM.anon_vma_lock,
        SYSTEM.anon_vma_free,
        ANON_VMA.next_free,
    )
    if anon_vma == 0:
        return 0
    store(anon_vma + ANON_VMA.generation, load(anon_vma + ANON_VMA.generation) + 1)
    store(anon_vma + ANON_VMA.next_free, 0)
    store(anon_vma + ANON_VMA.in_use, 1)
    store(anon_vma + ANON_VMA.root, anon_vma)
    return anon_vma


@kernel
def anon_vma_free(cpu: int, anon_vma: int) -> None:
    """Free an anon_vma that is linked to nothing any more."""
    store(anon_vma + ANON_VMA.in_use, 0)
    slab_cache_give(
        cpu,
        CPU.anon_vma_list,
        SYSTEM.anon_vma_lock,
        SYSTEM.anon_vma_free,
        ANON_VMA.next_free,
        anon_vma,
    )


# A VMA is linked to its own anon_vma by the chain inside it, and by one from the slab to each
# anon_vma that it has inherited: pages mapped before a fork stay those of the parent's.


@kernel
def anon_vma_chain_alloc(cpu: int) -> int:
    """Return a chain that is linked nowhere, or 0 if the slab is used up."""
    avc = slab_take(cpu, SYSTEM.avc_lock, SYSTEM.avc_free, ANON_VMA_CHAIN.same_vma)
    if avc != 0:
        store(avc + ANON_VMA_CHAIN.same_vma, 0)
    return avc


@kernel
def anon_vma_chain_free(cpu: int, avc: int) -> None:
    """Give back a chain from the slab that is linked nowhere."""
    slab_give(cpu, SYSTEM.avc_lock, SYSTEM.avc_free, ANON_VMA_CHAIN.same_vma, avc)


@kernel
def anon_vma_chain_link(vma: int, avc: int, anon_vma: int) -> None:
    """Let `anon_vma` know `vma` by `avc`; needs the anon_vma's lock."""
    head = load(anon_vma + ANON_VMA.head)
    store(avc + ANON_VMA_CHAIN.vma, vma)
    store(avc + ANON_VMA_CHAIN.anon_vma, anon_vma)
    store(avc + ANON_VMA_CHAIN.next, head)
    store(avc + ANON_VMA_CHAIN.prev, 0)
    if head != 0:
        store(head + ANON_VMA_CHAIN.prev, avc)
    store(anon_vma + ANON_VMA.head, avc)
    store(anon_vma + ANON_VMA.refcount, load(anon_vma + ANON_VMA.refcount) + 1)


@kernel
def anon_vma_chain_unlink(avc: int) -> int:
    """Let the anon_vma of `avc` forget its VMA; returns it.  Needs its lock."""
    anon_vma = load(avc + ANON_VMA_CHAIN.anon_vma)
    following = load(avc + ANON_VMA_CHAIN.next)
    prev = load(avc + ANON_VMA_CHAIN.prev)
    if prev != 0:
        store(prev + ANON_VMA_CHAIN.next, following)
    else:
        store(anon_vma + ANON_VMA.head, following)
    if following != 0:
        store(following + ANON_VMA_CHAIN.prev, prev)
    store(avc + ANON_VMA_CHAIN.anon_vma, 0)
    count = load(anon_vma + ANON_VMA.refcount)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    store(anon_vma + ANON_VMA.refcount, count - 1)
    return anon_vma


@kernel
def anon_vma_lock(cpu: int, anon_vma: int) -> None:
    """Lock an anon_vma with all its relatives: the lock is their root's."""
    spin_lock(cpu, load(anon_vma + ANON_VMA.root) + ANON_VMA.lock)


@kernel
def anon_vma_unlock(anon_vma: int) -> None:
    """Release the lock of an anon_vma and its relatives."""
    spin_unlock(load(anon_vma + ANON_VMA.root) + ANON_VMA.lock)


@kernel
def anon_vma_set(vma: int, anon_vma: int) -> None:
    """Make `anon_vma`, to which `vma` is linked, that of its new pages; needs the lock.

    The release pairs with the dependent use of the pointer by a speculative fault that copies the
    VMA.
    """
    store(anon_vma + ANON_VMA.degree, load(anon_vma + ANON_VMA.degree) + 1)
    smp_store_release(vma + VMA.anon_vma, anon_vma)


@kernel
def anon_vma_chain_copy(cpu: int, dst: int, src: int, own: int) -> int:
    """Link `dst` to all anon_vmas of `src`, by its own chain to `own` (0: to none of them).

    Returns 0 or -ENOMEM with a part done.  Needs the lock.
    """
    last = dst + VMA.avc
    chain = src + VMA.avc
    while chain != 0:
        anon_vma = load(chain + ANON_VMA_CHAIN.anon_vma)
        avc = dst + VMA.avc
        if anon_vma != own:
            avc = anon_vma_chain_alloc(cpu)
            if avc == 0:
                return -Errno.ENOMEM
            store(last + ANON_VMA_CHAIN.same_vma, avc)
            last = avc
        anon_vma_chain_link(dst, avc, anon_vma)
        chain = load(chain + ANON_VMA_CHAIN.same_vma)
    return 0


@kernel
def anon_vma_clone(cpu: int, dst: int, src: int) -> int:
    """Let `dst`, which has none, share all anon_vmas of `src`; 0 or -ENOMEM with none shared.

    Needs the mmap lock for writing.  Cannot fail if `src` has inherited none.
    """
    anon_vma = load(src + VMA.anon_vma)
    if anon_vma == 0:
        return 0
    anon_vma_lock(cpu, anon_vma)
    error = anon_vma_chain_copy(cpu, dst, src, anon_vma)
    if error == 0:
        anon_vma_set(dst, anon_vma)
    anon_vma_unlock(anon_vma)
    if error != 0:
        unlink_anon_vmas(cpu, dst)
    return error


@kernel
def anon_vma_reuse(src: int) -> int:
    """Return an anon_vma inherited by `src` that a child may take for its own, or 0.

    No VMA maps new pages with it and one anon_vma descends from it.  Without that, each fork by
    the youngest of a line of processes would make the chains longer.  Needs the lock.
    """
    found = 0
    chain = load(src + VMA.avc + ANON_VMA_CHAIN.same_vma)
    while chain != 0:
        anon_vma = load(chain + ANON_VMA_CHAIN.anon_vma)
        if load(anon_vma + ANON_VMA.parent) != 0 and load(anon_vma + ANON_VMA.degree) < 2:
            found = anon_vma
        chain = load(chain + ANON_VMA_CHAIN.same_vma)
    return found


@slowpath
def anon_vma_fork(cpu: int, vma: int, pvma: int) -> int:
    """Give `vma`, the child's copy of `pvma`, an anon_vma of its own below the parent's.

    Returns 0 or -ENOMEM with nothing done.  Needs the parent's mmap lock for writing.
    """
    parent = load(pvma + VMA.anon_vma)
    if parent == 0:
        return 0
    fresh = anon_vma_alloc(cpu)
    if fresh == 0:
        return -Errno.ENOMEM
    anon_vma_lock(cpu, parent)
    own = anon_vma_reuse(pvma)
    error = anon_vma_chain_copy(cpu, vma, pvma, own)
    if error == 0 and own == 0:
        own = fresh
        fresh = 0
        anon_vma_adopt(own, parent)
        anon_vma_chain_link(vma, vma + VMA.avc, own)
    if error == 0:
        anon_vma_set(vma, own)
    anon_vma_unlock(parent)
    if fresh != 0:
        anon_vma_free(cpu, fresh)
    if error != 0:
        unlink_anon_vmas(cpu, vma)
    return error


@kernel
def anon_vma_adopt(anon_vma: int, parent: int) -> None:
    """Put a fresh anon_vma below `parent`; needs the parent's lock."""
    root = load(parent + ANON_VMA.root)
    store(anon_vma + ANON_VMA.root, root)
    store(anon_vma + ANON_VMA.parent, parent)
    store(root + ANON_VMA.refcount, load(root + ANON_VMA.refcount) + 1)
    store(parent + ANON_VMA.degree, load(parent + ANON_VMA.degree) + 1)


@kernel
def anon_vma_disown(anon_vma: int) -> None:
    """Undo `anon_vma_adopt` for one that no VMA is linked to any more; needs the lock."""
    root = load(anon_vma + ANON_VMA.root)
    parent = load(anon_vma + ANON_VMA.parent)
    store(root + ANON_VMA.refcount, load(root + ANON_VMA.refcount) - 1)
    store(parent + ANON_VMA.degree, load(parent + ANON_VMA.degree) - 1)
    store(anon_vma + ANON_VMA.parent, 0)


@kernel
def is_fork_child(anon_vma: int) -> int:
    """Tell whether VMAs with this anon_vma have inherited others (vma_is_fork_child)."""
    return load(anon_vma + ANON_VMA.root) != anon_vma


@kernel
def unlink_anon_vmas(cpu: int, vma: int) -> None:
    """Drop the anon_vmas of a VMA that is being freed; it maps no page any more."""
    avc = vma + VMA.avc
    if load(avc + ANON_VMA_CHAIN.anon_vma) == 0:
        avc = load(avc + ANON_VMA_CHAIN.same_vma)
    if avc != 0:
        unlink_anon_vma_chains(cpu, vma, avc)


@kernel
def unlink_anon_vma_list(cpu: int, vma: int) -> None:
    """Drop those of all VMAs of a list linked by vm_next."""
    while vma != 0:
        unlink_anon_vmas(cpu, vma)
        vma = load(vma + VMA.vm_next)


@kernel
def unlink_anon_vma_chains(cpu: int, vma: int, avc: int) -> None:
    """Unlink the chains of `vma` from `avc` on, its first; free what is in no use any more.

    Once a VMA was the last that anon_vmas had, nobody can reach them: they are freed unlocked.
    """
    root = load(load(avc + ANON_VMA_CHAIN.anon_vma) + ANON_VMA.root)
    emptied = 0
    spin_lock(cpu, root + ANON_VMA.lock)
    own = load(vma + VMA.anon_vma)
    if own != 0:
        write_once(vma + VMA.anon_vma, 0)
        store(own + ANON_VMA.degree, load(own + ANON_VMA.degree) - 1)
    while avc != 0:
        following = load(avc + ANON_VMA_CHAIN.same_vma)
        anon_vma = anon_vma_chain_unlink(avc)
        if anon_vma != root and load(anon_vma + ANON_VMA.refcount) == 0:
            anon_vma_disown(anon_vma)
            store(anon_vma + ANON_VMA.next_free, emptied)
            emptied = anon_vma
        if avc != vma + VMA.avc:
            anon_vma_chain_free(cpu, avc)
        avc = following
    store(vma + VMA.avc + ANON_VMA_CHAIN.same_vma, 0)
    if load(root + ANON_VMA.refcount) == 0:
        store(root + ANON_VMA.next_free, emptied)
        emptied = root
    spin_unlock(root + ANON_VMA.lock)
    while emptied != 0:
        following = load(emptied + ANON_VMA.next_free)
        anon_vma_free(cpu, emptied)
        emptied = following


@kernel
def anon_vma_compatible(lower: int, upper: int) -> int:
    """Tell whether two VMAs touch and would be one, but for their access rights."""
    if load(lower + VMA.vm_end) != load(upper + VMA.vm_start):
        return 0
    if load(lower + VMA.vm_file) != load(upper + VMA.vm_file):
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
    One that was inherited would bring its ancestors with it and is not taken.
    """
    following = load(vma + VMA.vm_next)
    if following != 0 and anon_vma_compatible(vma, following):
        anon_vma = read_once(following + VMA.anon_vma)
        if anon_vma != 0 and not is_fork_child(anon_vma):
            return anon_vma
    prev = load(vma + VMA.vm_prev)
    if prev != 0 and anon_vma_compatible(prev, vma):
        anon_vma = read_once(prev + VMA.anon_vma)
        if anon_vma != 0 and not is_fork_child(anon_vma):
            return anon_vma
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
    fresh = 0
    anon_vma = find_mergeable_anon_vma(vma)
    if anon_vma != 0:
        # the neighbour's own reference lasts as long as the mmap lock is held
        anon_vma_lock(cpu, anon_vma)
    else:
        # nobody else knows it until it is set, so it needs no lock
        fresh = anon_vma_alloc(cpu)
        if fresh == 0:
            return -Errno.ENOMEM
        anon_vma = fresh
    spin_lock(cpu, mm + MM.page_table_lock)
    lost = load(vma + VMA.anon_vma)
    if lost == 0:
        anon_vma_chain_link(vma, vma + VMA.avc, anon_vma)
        anon_vma_set(vma, anon_vma)
    spin_unlock(mm + MM.page_table_lock)
    if fresh == 0:
        anon_vma_unlock(anon_vma)
    elif lost != 0:
        anon_vma_free(cpu, fresh)
    return 0
