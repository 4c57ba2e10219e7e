# SPDX-License-Identifier: MIT
"""A page table is linked before it is seen cleared.

What smp_wmb in pmd_install of Linux (mm/memory.c) is for.

The hardware walks through a table that still holds what was in the frame before, and takes data
for an entry.
"""

from spfemu.kernel import kernel
from spfemu.primitives import write_once

PROTOCOL = "spf"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "walk_of_a_table_that_is_cleared_late"
WEAK_MEMORY = True


@kernel
def set_pte(pte: int, value: int) -> None:
    """Write the entry, with nothing before it."""
    write_once(pte, value)
