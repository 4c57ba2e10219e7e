# SPDX-License-Identifier: MIT
"""Nothing orders the reads of the VMA behind that of mmap_seq.

M15: the read barrier of mmap_seq_read_start left out. x86 keeps loads in order and needs none.

The fault has read a field of the VMA before a writer came, and the count after it went: both
checks find the count unchanged. Its page gets the index of another address.
"""

from spfemu.kernel import kernel
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.primitives import read_once

PROTOCOL = "spf"
PROMISE = "TORN_READ"
SCHEDULE = "fault_that_reads_the_vma_early"
ID = "M15"
WEAK_MEMORY = True


@kernel
def mmap_seq_read_start(mm: int) -> int:
    """Read the count, with nothing behind it."""
    return read_once(mmap_seq_addr(mm))
