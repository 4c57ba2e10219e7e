# SPDX-License-Identifier: MIT
"""A writer makes mmap_seq odd before it has the mmap lock.

Patch 10 of the series: plain increments are safe only because the holder has the lock
exclusively.

A writer that waits turns the parity round for the one that is inside.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM
from spfemu.mm.mmap_lock import HELD_WRITE, mmap_seq_addr
from spfemu.mm.rwsem import down_write
from spfemu.primitives import read_once, smp_wmb, store, write_once

PROTOCOL = "spf"
PROMISE = "SEQUENCE"
SCHEDULE = "two_writers"


@kernel
def mmap_write_lock_killable(cpu: int, mm: int) -> int:
    """Enter, then lock."""
    write_once(mmap_seq_addr(mm), read_once(mmap_seq_addr(mm)) + 1)
    smp_wmb()
    down_write(cpu, mm + MM.mmap_lock)
    store(cpu + CPU.mmap_lock_held, HELD_WRITE)
    return 0
