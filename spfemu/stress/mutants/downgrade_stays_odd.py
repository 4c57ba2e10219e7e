# SPDX-License-Identifier: MIT
"""A downgrade of the mmap lock does not leave the write section.

M13: the interface has two ways to end a write section, and one of them is easily forgotten.

The count is odd without a writer: nobody speculates any more, and the next writer turns the
meaning of odd and even round.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM
from spfemu.mm.mmap_lock import HELD_READ
from spfemu.mm.rwsem import downgrade_write
from spfemu.mm.vma_write import vma_end_write_all
from spfemu.primitives import store

PROTOCOL = "spf"
PROMISE = "SEQUENCE"
SCHEDULE = "write_beside_two_munmaps"
ID = "M13"


@kernel
def mmap_write_downgrade(cpu: int, mm: int) -> None:
    """Release without leaving."""
    vma_end_write_all(cpu, mm)
    store(cpu + CPU.mmap_lock_held, HELD_READ)
    downgrade_write(cpu, mm + MM.mmap_lock)
