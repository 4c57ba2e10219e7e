# SPDX-License-Identifier: MIT
"""A writer does not wait until references of faults to a VMA are gone.

Synthetic, for the reference counts of Linux 6.15.

A fault goes on in a VMA that is being unmapped.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.primitives import atomic_fetch_add

PROTOCOL = "vma-refcount"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "a_locked_vma_beside_munmap"


@kernel
def vma_enter_locked(cpu: int, vma: int, target: int) -> int:
    """Keep new ones out, only."""
    return atomic_fetch_add(vma + VMA.vm_refcnt, 1 << 30) != 0
