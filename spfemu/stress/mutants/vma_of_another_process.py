# SPDX-License-Identifier: MIT
"""A fault does not ask whether the VMA that it has a reference to is one of its process.

M19: VMAs are used again at once (SLAB_TYPESAFE_BY_RCU), by other processes too.

An address that is not mapped is filled with the help of a stranger's VMA.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.primitives import atomic_fetch_add, read_once

PROTOCOL = "vma-refcount"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "a_vma_that_goes_to_another_process"
ID = "M19"


@kernel
def vma_start_read(cpu: int, mm: int, vma: int) -> int:
    """Take the reference, whatever it is of."""
    if read_once(vma + VMA.vm_lock_seq) == read_once(mm + MM.mm_lock_seq):
        return Event.VMA_LOCK_ABORT_SEQ
    atomic_fetch_add(vma + VMA.vm_refcnt, 1)
    return 0
