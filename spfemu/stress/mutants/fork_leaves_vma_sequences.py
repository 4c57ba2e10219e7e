# SPDX-License-Identifier: MIT
"""A fork does not move the sequence counts of the VMAs whose pages it shares.

M01, in the design that had it: Dufour's series up to v11.

A speculative fault copies a page in the middle of the fork, and a write of another thread is
lost.
"""

from spfemu.kernel import kernel
from spfemu.mm.mmap_lock import mmap_write_unlock
from spfemu.mm.tlb import flush_tlb_mm

PROTOCOL = "spf-vma"
PROMISE = "DATA"
SCHEDULE = "copy_beside_a_fork"
ID = "M01"


@kernel
def dup_vma_lock(cpu: int, mpnt: int) -> None:
    """Trust in the mmap lock."""


@kernel
def dup_mmap_unlock(cpu: int, mm: int, oldmm: int, rest: int) -> None:
    """End no write section of a VMA."""
    mmap_write_unlock(cpu, mm)
    flush_tlb_mm(cpu, oldmm)
    mmap_write_unlock(cpu, oldmm)
