# SPDX-License-Identifier: MIT
"""A speculative fault does not check the sequence count of its VMA.

M08, for the design of Dufour.

A page is mapped in a table that munmap has cleared already and is about to free.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf-vma"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "write_in_the_gate_beside_munmap"


@kernel
def vma_has_changed(vma: int, seq: int) -> int:
    """Say no."""
    return 0
