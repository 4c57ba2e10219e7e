# SPDX-License-Identifier: MIT
"""`spf-vma` as it was before: lookups take a read-write lock of the VMA tree (Dufour, v11).

The lock makes lookups simple: the tree is at rest, and a VMA that is found has the reference of the
tree.  So the last reference frees a VMA at once.  The price is that all faults of the process write
one more line, that of the lock; v12 took it away.

Source: L. Dufour, "Speculative page faults" v11 of 2018-05-17 for Linux 4.17.  What differs is what
`spf-vma` names; v11 tries for the page-table lock again and again instead of giving up.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.rbtree_latch import vma_rb_lookup
from spfemu.mm.rwlock import read_lock, read_unlock, write_lock, write_unlock
from spfemu.mm.vma import vm_area_free_rcu
from spfemu.primitives import atomic_fetch_add, atomic_fetch_add_relaxed

EXTENDS = "spf-vma"


@kernel
def get_vma(cpu: int, mm: int, address: int) -> int:
    """Find the first VMA that ends behind `address` and take a reference, or return 0.

    The cache of the thread is left alone: it may still hold a VMA that has just left the tree.
    """
    read_lock(cpu, mm + MM.mm_rb_lock)
    vma = vma_rb_lookup(mm, address)
    if vma != 0:
        # the tree's own reference lasts as long as the lock is held
        atomic_fetch_add_relaxed(vma + VMA.vm_ref_count, 1)
    read_unlock(mm + MM.mm_rb_lock)
    return vma


@kernel
def put_vma(cpu: int, vma: int) -> None:
    """Drop a reference; with the last one the VMA is free: nobody finds it any more.

    The full order of the decrement puts what other holders did before the reuse.
    """
    count = atomic_fetch_add(vma + VMA.vm_ref_count, -1)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    if count == 1:
        vm_area_free_rcu(cpu, vma)


@kernel
def mm_write_seqlock(mm: int) -> None:
    """Keep lookups out of the tree; the mmap lock is held for writing, so there is one writer."""
    write_lock(mm + MM.mm_rb_lock)


@kernel
def mm_write_sequnlock(mm: int) -> None:
    """Let them in again."""
    write_unlock(mm + MM.mm_rb_lock)
