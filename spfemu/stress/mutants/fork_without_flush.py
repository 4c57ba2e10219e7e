# SPDX-License-Identifier: MIT
"""A fork write-protects the parent's entries and does not flush.

M01 taken to the end: the flush is not late, it is missing.

The parent goes on writing to frames that it shares with the child.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.mm.mmap_lock import mmap_write_unlock
from spfemu.mm.vma_write import vm_write_end
from spfemu.primitives import load

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "write_through_an_old_translation_after_a_fork"


@kernel
def dup_mmap_unlock(cpu: int, mm: int, oldmm: int, rest: int) -> None:
    """Release the locks, only."""
    mmap_write_unlock(cpu, mm)
    mpnt = load(oldmm + MM.mmap)
    while mpnt != rest:
        vm_write_end(mpnt)
        mpnt = load(mpnt + VMA.vm_next)
    mmap_write_unlock(cpu, oldmm)
