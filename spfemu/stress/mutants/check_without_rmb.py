# SPDX-License-Identifier: MIT
"""Nothing orders the reads of the VMA before the check of mmap_seq.

M15: the read barrier of mmap_seq_read_check left out. x86 keeps loads in order and needs none.

Checks of the copy and of the tables may pass that should not. The last check, under the page-
table lock, cannot: taking the lock is an acquire, and the copy was made before.
"""

from spfemu.kernel import kernel
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import read_once

PROTOCOL = "spf"
PROMISE = "TORN_READ"
SURVIVES = "the acquire of the page-table lock orders the last check"
ID = "M15"
WEAK_MEMORY = True


@kernel
def mmap_seq_read_check(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Compare the count, with nothing before it."""
    if read_once(mmap_seq_addr(mm)) == seq:
        return 1
    count_vm_event(cpu, fail_event)
    return 0
