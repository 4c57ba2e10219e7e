# SPDX-License-Identifier: MIT
"""A VMA gets the reference of the tree by a plain store.

What the release in vma_mark_attached of Linux 6.15 is for: slots are used again at once.

A fault that has found the slot as another VMA gets a reference to the new one and still sees
what the old one allowed.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.primitives import write_once

PROTOCOL = "vma-refcount"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "fault_in_a_vma_that_is_used_again"
WEAK_MEMORY = True


@kernel
def vma_mark_attached(cpu: int, vma: int) -> None:
    """Store the count, with nothing before it."""
    write_once(vma + VMA.vm_refcnt, 1)
