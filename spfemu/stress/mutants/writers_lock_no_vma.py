# SPDX-License-Identifier: MIT
"""Writers do not lock the VMAs that they change.

M23 and M18 in general: one vma_start_write forgotten, as in 33313a747e81 and d8ab9f7b644a.

A fault goes on in a VMA that is being unmapped.
"""

from spfemu.kernel import kernel

PROTOCOL = "vma-lock"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "a_locked_vma_beside_munmap"


@kernel
def vma_start_write(cpu: int, vma: int) -> None:
    """Rely on the mmap lock."""
