# SPDX-License-Identifier: MIT
"""A writer lets readers of a VMA in again without a release.

What the release is for with which vma_start_write of Linux 6.15 takes VMA_LOCK_OFFSET away.

A fault takes a reference, does not see that the VMA is marked as locked, and uses it while the
writer changes it.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.primitives import atomic_fetch_add_relaxed, load, write_once
from spfemu.protocols.vma_refcount import VMA_LOCK_OFFSET, vma_enter_locked

PROTOCOL = "vma-refcount"
PROMISE = "TORN_READ"
SCHEDULE = "fault_before_the_vma_is_seen_locked"
WEAK_MEMORY = True


@kernel
def vma_start_write(cpu: int, vma: int) -> None:
    """Lock the VMA as vma-refcount does, but for the release."""
    seq = load(load(vma + VMA.vm_mm) + MM.mm_lock_seq)
    if load(vma + VMA.vm_lock_seq) == seq:
        return
    locked = vma_enter_locked(cpu, vma, VMA_LOCK_OFFSET + 1)
    write_once(vma + VMA.vm_lock_seq, seq)
    if locked:
        atomic_fetch_add_relaxed(vma + VMA.vm_refcnt, -VMA_LOCK_OFFSET)
