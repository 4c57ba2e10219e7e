# SPDX-License-Identifier: MIT
"""A writer makes mmap_seq even only after it has released the mmap lock.

Patch 10 of the series: leaving comes before the release.

The next writer enters while the count is odd still, and leaves it even for its whole time.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM
from spfemu.mm.mmap_lock import mmap_seq_write_leave
from spfemu.mm.rwsem import up_write
from spfemu.mm.vma_write import vma_end_write_all
from spfemu.primitives import store

PROTOCOL = "spf"
PROMISE = "SEQUENCE"
SCHEDULE = "two_writers"


@kernel
def mmap_write_unlock(cpu: int, mm: int) -> None:
    """Release, then leave."""
    vma_end_write_all(cpu, mm)
    store(cpu + CPU.mmap_lock_held, 0)
    up_write(cpu, mm + MM.mmap_lock)
    mmap_seq_write_leave(mm)
