# SPDX-License-Identifier: MIT
"""The commit gate waits for the page-table lock instead of trying for it.

M11: patch 16 of the series describes the deadlock. The holder of the lock may be waiting for this
CPU to flush its TLB, which it cannot with interrupts off.

Both wait for ever.
"""

from spfemu.kernel import kernel
from spfemu.mm.spinlock import spin_lock

PROTOCOL = "spf"
PROMISE = "PROGRESS"
SCHEDULE = "write_after_a_fork"
ID = "M11"
CONFIG = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": 0}


@kernel
def spin_trylock(cpu: int, lock: int) -> int:
    """Wait."""
    spin_lock(cpu, lock)
    return 1
