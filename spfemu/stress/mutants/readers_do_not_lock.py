# SPDX-License-Identifier: MIT
"""Who takes the mmap lock for reading does not take it.

Synthetic: what a speculative fault would be without its checks.

A fault maps a page in memory that is being unmapped.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.mm.mmap_lock import HELD_READ
from spfemu.primitives import store

PROTOCOL = "classic"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "write_in_the_gate_beside_munmap"


@kernel
def mmap_read_lock(cpu: int, mm: int) -> None:
    """Lock nothing."""
    store(cpu + CPU.mmap_lock_held, HELD_READ)


@kernel
def mmap_read_trylock(cpu: int, mm: int) -> int:
    """Lock nothing."""
    store(cpu + CPU.mmap_lock_held, HELD_READ)
    return 1


@kernel
def mmap_read_unlock(cpu: int, mm: int) -> None:
    """Unlock what was not locked."""
    store(cpu + CPU.mmap_lock_held, 0)
