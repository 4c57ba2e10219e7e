# SPDX-License-Identifier: MIT
"""A write section is left at the downgrade and again when the lock is released.

M13, the other way round: who holds a downgraded lock releases it like a reader, and the leave
there is one too many.

The count is odd without a writer and even with one: speculation is allowed exactly while writers
run.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.primitives import read_once, write_once

PROTOCOL = "spf"
PROMISE = "SEQUENCE"
SCHEDULE = "write_beside_two_munmaps"
ID = "M13"


@around
def mmap_write_downgrade(cpu: int, mm: int) -> None:
    """Leave a second time, as at the release."""
    proceed(cpu, mm)
    write_once(mmap_seq_addr(mm), read_once(mmap_seq_addr(mm)) + 1)
