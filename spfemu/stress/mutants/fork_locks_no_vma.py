# SPDX-License-Identifier: MIT
"""A fork does not lock the VMAs whose pages it shares.

M23: Linux 6.4.0, fixed by fb49c455323f in 6.4.1. Faults under the lock of a VMA do not look at
the mmap lock.

A fault copies a page in the middle of the fork, and a write of another thread is lost.
"""

from spfemu.kernel import kernel
from spfemu.mm.mmap_lock import mmap_write_unlock
from spfemu.mm.tlb import flush_tlb_mm

PROTOCOL = "vma-lock"
PROMISE = "DATA"
SCHEDULE = "copy_beside_a_fork"
ID = "M23"


@kernel
def dup_vma_lock(cpu: int, mpnt: int) -> None:
    """Trust in the mmap lock."""


@kernel
def dup_mmap_unlock(cpu: int, mm: int, oldmm: int, rest: int) -> None:
    """End no write section of a VMA."""
    mmap_write_unlock(cpu, mm)
    flush_tlb_mm(cpu, oldmm)
    mmap_write_unlock(cpu, oldmm)
