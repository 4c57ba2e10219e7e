# SPDX-License-Identifier: MIT
"""A CPU that releases the mmap lock goes on noting that it holds it.

Synthetic: current->reclaim_state and its like, left set on the way out.

A reclaimer on that CPU takes the lock for its own, and a crash report says that a lock is held that
is free.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM
from spfemu.mm.rwsem import up_read

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "one_by_one"


@kernel
def mmap_read_unlock(cpu: int, mm: int) -> None:
    """Release it, only."""
    up_read(cpu, mm + MM.mmap_lock)
