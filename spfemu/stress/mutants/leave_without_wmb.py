# SPDX-License-Identifier: MIT
"""Nothing orders the writer's changes before the even mmap_seq.

M15: the write barrier of mmap_seq_write_leave left out. x86 keeps stores in order and needs
none.

A fault that begins after the count is even copies a VMA of which one change is still to come.
Its page gets the index of another address.
"""

from spfemu.kernel import kernel
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.primitives import read_once, write_once

PROTOCOL = "spf"
PROMISE = "TORN_READ"
SCHEDULE = "fault_after_the_even_count_is_visible"
ID = "M15"
WEAK_MEMORY = True


@kernel
def mmap_seq_write_leave(mm: int) -> None:
    """Count up, with nothing before it."""
    seq = read_once(mmap_seq_addr(mm)) + 1
    vm_bug_on(seq & 1, Bug.SEQ_ODD_ON_LEAVE)
    write_once(mmap_seq_addr(mm), seq)
