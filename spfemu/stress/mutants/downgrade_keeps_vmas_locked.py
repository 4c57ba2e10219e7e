# SPDX-License-Identifier: MIT
"""A downgrade of the mmap lock does not unlock the VMAs that the writer has locked.

Synthetic: mmap_write_downgrade calls vma_end_write_all since 6.4, and is the place to forget it.

Faults there go back to the mmap lock, and the next writer takes the VMAs for locked by itself: it
does not wait for the faults inside.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM
from spfemu.mm.mmap_lock import HELD_READ, mmap_seq_write_leave
from spfemu.mm.rwsem import downgrade_write
from spfemu.primitives import store

PROTOCOL = "vma-lock"
PROMISE = "SEQUENCE"
SCHEDULE = "a_part_is_unmapped"


@kernel
def mmap_write_downgrade(cpu: int, mm: int) -> None:
    """Leave them as they are."""
    mmap_seq_write_leave(mm)
    store(cpu + CPU.mmap_lock_held, HELD_READ)
    downgrade_write(cpu, mm + MM.mmap_lock)
