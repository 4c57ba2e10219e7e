# SPDX-License-Identifier: MIT
"""The commit gate with a count per VMA does not look at mmap_seq under the lock.

M08, in the experiment with a count: a count keeps nobody out.

A page is mapped in a table that munmap has cleared already and is about to free.
"""

from spfemu.events import Event
from spfemu.kernel import around, proceed

PROTOCOL = "spf-counted"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "write_in_the_gate_beside_munmap"


@around
def mmap_seq_read_check(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Leave out the check under the lock."""
    if fail_event == Event.SPF_ABORT_PTE_MAP_LOCK_SEQ2:
        return 1
    return proceed(cpu, mm, seq, fail_event)
