# SPDX-License-Identifier: MIT
"""Unlocking all VMAs is a plain store of mm_lock_seq.

M16: Linux 6.4 as released; Jann Horn's b1f02b95758d made it a release.

A fault finds a VMA unlocked of which one change is still to come. Its page gets the index of
another address.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM
from spfemu.primitives import load, write_once

PROTOCOL = "vma-lock"
PROMISE = "TORN_READ"
SCHEDULE = "fault_after_the_unlock_is_visible"
ID = "M16"
WEAK_MEMORY = True


@kernel
def vma_end_write_all(cpu: int, mm: int) -> None:
    """Count up, with nothing before it."""
    write_once(mm + MM.mm_lock_seq, load(mm + MM.mm_lock_seq) + 1)
