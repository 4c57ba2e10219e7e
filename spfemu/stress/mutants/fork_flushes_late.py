# SPDX-License-Identifier: MIT
"""A fork flushes the parent's TLBs behind the unlock.

M01: found in Dufour's series up to v11 by Vinayak Menon and Ganesh Mahendran, fixed in patch 18
of v12. In this design the parent's count must stay odd until after the flush.

A fault copies a page that another thread still writes to through its TLB; what it writes is lost.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.mm.mmap_lock import mmap_write_unlock
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.vma_write import vm_write_end
from spfemu.primitives import load

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "copy_beside_a_fork"
ID = "M01"


@kernel
def dup_mmap_unlock(cpu: int, mm: int, oldmm: int, rest: int) -> None:
    """Release the locks, then flush."""
    mmap_write_unlock(cpu, mm)
    mpnt = load(oldmm + MM.mmap)
    while mpnt != rest:
        vm_write_end(mpnt)
        mpnt = load(mpnt + VMA.vm_next)
    mmap_write_unlock(cpu, oldmm)
    flush_tlb_mm(cpu, oldmm)
