# SPDX-License-Identifier: MIT
"""A VMA that is unmapped is not marked as detached.

vma_mark_detached of Linux 6.4: the end of a write section unlocks all VMAs, those that are gone
included.

A fault that has found it before locks it afterwards, and maps a page where nothing is.
"""

from spfemu.kernel import kernel

PROTOCOL = "vma-lock"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "lock_of_a_detached_vma"


@kernel
def vma_mark_detached(cpu: int, vma: int) -> None:
    """Say nothing."""
