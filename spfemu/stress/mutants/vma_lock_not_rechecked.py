# SPDX-License-Identifier: MIT
"""A fault does not look again whether its VMA is locked for writing once it has the lock.

vma_start_read of Linux 6.4: the first look only saves an atomic, the second one is the check.
Validate before lock is the class of M17.

A fault goes on beside a writer, and maps a page in what is being unmapped.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.mm.rwsem import down_read_trylock
from spfemu.primitives import read_once

PROTOCOL = "vma-lock"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "lock_of_a_vma_beside_munmap"


@kernel
def vma_start_read(cpu: int, mm: int, vma: int) -> int:
    """Trust the first look."""
    if read_once(vma + VMA.vm_lock_seq) == read_once(mm + MM.mm_lock_seq):
        return Event.VMA_LOCK_ABORT_SEQ
    if down_read_trylock(cpu, vma + VMA.vm_lock) == 0:
        return Event.VMA_LOCK_ABORT_BUSY
    return 0
