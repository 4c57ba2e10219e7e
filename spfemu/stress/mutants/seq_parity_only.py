# SPDX-License-Identifier: MIT
"""The check of mmap_seq only asks whether the count is even.

M06: a copy that is not checked. A reader that takes an even count for "no writer" overlooks all
writers that have come and gone.

A fault goes on with a mixture of two states of its VMA: the start of one with the offset of the
other.
"""

from spfemu.kernel import kernel
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import read_once, smp_rmb

PROTOCOL = "spf"
PROMISE = "TORN_READ"
SCHEDULE = "copy_of_a_vma_beside_a_split"
ID = "M06"


@kernel
def mmap_seq_read_check(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Look at the parity alone."""
    smp_rmb()
    if read_once(mmap_seq_addr(mm)) & 1 == 0:
        return 1
    count_vm_event(cpu, fail_event)
    return 0
