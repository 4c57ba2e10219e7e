# SPDX-License-Identifier: MIT
"""Nothing orders the odd mmap_seq before the changes that the writer makes.

M15: the write barrier of mmap_seq_write_enter left out. x86 keeps stores in order and needs
none.

A fault copies a VMA between two changes, and finds the count even all the time. Its page gets
the index of another address, under which no walk from the page finds its pte.
"""

from spfemu.kernel import kernel
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.primitives import read_once, write_once

PROTOCOL = "spf"
PROMISE = "TORN_READ"
SCHEDULE = "fault_before_the_odd_count_is_visible"
ID = "M15"
WEAK_MEMORY = True


@kernel
def mmap_seq_write_enter(mm: int) -> None:
    """Count up, with nothing behind it."""
    seq = read_once(mmap_seq_addr(mm))
    vm_bug_on(seq & 1, Bug.SEQ_ODD_ON_ENTER)
    write_once(mmap_seq_addr(mm), seq + 1)
