# SPDX-License-Identifier: MIT
"""Entries of page tables are written without a release.

What smp_wmb in __pte_alloc and in __SetPageUptodate is for; Linux documents both as pairing
with the dependency of a walk.

A thread finds a page mapped that is not yet seen cleared, and reads what its last user left
there.
"""

from spfemu.kernel import kernel
from spfemu.primitives import write_once

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "read_of_a_page_that_is_cleared_late"
WEAK_MEMORY = True


@kernel
def set_pte(pte: int, value: int) -> None:
    """Write the entry, with nothing before it."""
    write_once(pte, value)
