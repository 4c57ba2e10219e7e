# SPDX-License-Identifier: MIT
"""A writer marks its VMAs as locked, but does not wait for the faults inside.

Synthetic: the rwsem is taken for nothing but this wait.

A fault that came before goes on in a VMA that is being unmapped.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, VMA
from spfemu.primitives import load, write_once

PROTOCOL = "vma-lock"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "a_locked_vma_beside_munmap"


@kernel
def vma_start_write(cpu: int, vma: int) -> None:
    """Write the number, only."""
    write_once(vma + VMA.vm_lock_seq, load(load(vma + VMA.vm_mm) + MM.mm_lock_seq))
