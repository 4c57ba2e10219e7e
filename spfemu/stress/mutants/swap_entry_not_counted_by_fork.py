# SPDX-License-Identifier: MIT
"""A fork gives the child a swap entry without counting it.

A slip of a reference count.

The slot is free once the parent has its page back, and the child reads what is written there
next.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM
from spfemu.mm.pgtable import set_pte
from spfemu.mm.swapops import pte_to_swp_entry
from spfemu.primitives import atomic_fetch_add_relaxed, read_once

PROTOCOL = "classic"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "fork_of_a_swapped_page"


@kernel
def copy_swap_pte(cpu: int, mm: int, pte: int, src_pte: int) -> None:
    """Copy the entry, only."""
    atomic_fetch_add_relaxed(mm + MM.swap_ents, 1)
    set_pte(pte, pte_to_swp_entry(read_once(src_pte)))
