# SPDX-License-Identifier: MIT
"""The look at mm_lock_seq with the VMA's lock held is a plain load.

M16: the reader's half of Jann Horn's b1f02b95758d, for Linux 6.4.

A fault finds the VMA unlocked, but has read a field of it while the writer still had it. Its
page gets the index of another address.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.mm.rwsem import down_read_trylock, up_read
from spfemu.primitives import load, read_once

PROTOCOL = "vma-lock"
PROMISE = "TORN_READ"
SCHEDULE = "fault_that_locks_the_vma_beside_its_writer"
ID = "M16"
WEAK_MEMORY = True


@kernel
def vma_start_read(cpu: int, mm: int, vma: int) -> int:
    """Lock the VMA as vma-lock does, but for the acquire."""
    if read_once(vma + VMA.vm_lock_seq) == read_once(mm + MM.mm_lock_seq):
        return Event.VMA_LOCK_ABORT_SEQ
    if down_read_trylock(cpu, vma + VMA.vm_lock) == 0:
        return Event.VMA_LOCK_ABORT_BUSY
    if load(vma + VMA.vm_lock_seq) == load(mm + MM.mm_lock_seq):
        up_read(cpu, vma + VMA.vm_lock)
        return Event.VMA_LOCK_ABORT_SEQ_RECHECK
    return 0
