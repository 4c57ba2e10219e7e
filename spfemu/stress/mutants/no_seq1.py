# SPDX-License-Identifier: MIT
"""The commit gate does not look at mmap_seq before it reads the tables that the walk has found.

M07: the check looks redundant, because another one follows under the lock.

Nothing has kept the tables since the walk: the entry that is compared and the lock that is tried
for lie in memory that munmap may have freed, and that may be somebody else's by now.
"""

from spfemu.events import Event
from spfemu.kernel import around, proceed

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "gate_behind_a_munmap"
ID = "M07"
CONFIG = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": 0}


@around
def mmap_seq_read_check(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Leave out the check before the walk's tables are used again."""
    if fail_event == Event.SPF_ABORT_PTE_MAP_LOCK_SEQ1:
        return 1
    return proceed(cpu, mm, seq, fail_event)
