# SPDX-License-Identifier: MIT
"""A wait for the mmap lock that a signal ends enters the write section all the same.

Patch 10 of the series: enter only if the lock was taken.

The count stays odd for ever, or even while the next writer is inside.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.primitives import read_once, write_once

PROTOCOL = "spf"
PROMISE = "SEQUENCE"
SCHEDULE = "a_killed_writer"


@around
def mmap_write_lock_killable(cpu: int, mm: int) -> int:
    """Enter whatever comes."""
    error = proceed(cpu, mm)
    if error != 0:
        write_once(mmap_seq_addr(mm), read_once(mmap_seq_addr(mm)) + 1)
    return error
