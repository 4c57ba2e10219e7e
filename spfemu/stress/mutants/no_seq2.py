# SPDX-License-Identifier: MIT
"""The commit gate does not look at mmap_seq again once it holds the page-table lock.

M08: the check looks redundant, because another one has just been made.

A page is mapped in a table that munmap has cleared already and is about to free: the frame is
lost, and the write that was acknowledged with it.
"""

from spfemu.events import Event
from spfemu.kernel import around, proceed

PROTOCOL = "spf"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "write_in_the_gate_beside_munmap"
ID = "M08"


@around
def mmap_seq_read_check(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Leave out the check under the lock."""
    if fail_event == Event.SPF_ABORT_PTE_MAP_LOCK_SEQ2:
        return 1
    return proceed(cpu, mm, seq, fail_event)
