# SPDX-License-Identifier: MIT
"""Swapped pages that are unmapped are not counted off their process.

A slip of MM_SWAPENTS, which Linux looks at only when the mm is freed: "BUG: Bad rss-counter state".

The process seems to have memory in swap that is free.
"""

from spfemu.kernel import kernel
from spfemu.mm.swap_state import free_swap_and_cache
from spfemu.mm.swapops import is_swap_pte, pte_to_swp_entry

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "a_swapped_page_is_unmapped"


@kernel
def zap_swap_pte(cpu: int, mm: int, entry: int) -> None:
    """Free what it held, only."""
    if is_swap_pte(entry):
        free_swap_and_cache(cpu, pte_to_swp_entry(entry))
