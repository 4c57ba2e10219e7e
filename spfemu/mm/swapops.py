# SPDX-License-Identifier: MIT
"""Entries of ptes that map no frame and are not empty (Linux 6.1, include/linux/swapops.h).

Such a pte is neither PRESENT nor PROTNONE and has SWAP_ENTRY, with its slot in bits 12 and up;
UFFD_WP means what it means in a pte that maps a frame.  Other kinds, for migration and devices, are
not there.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT
from spfemu.mm.flags import Pte

NOT_MAPPING = int(Pte.PRESENT | Pte.PROTNONE)
SWAP_ENTRY = 4
"""What all entries have: one of slot 0 is not empty."""
SWAP_ENTRY_BITS = NOT_MAPPING | SWAP_ENTRY


@kernel
def swp_entry_to_pte(offset: int) -> int:
    """Return the pte that names a slot."""
    return SWAP_ENTRY | (offset << PAGE_SHIFT)


@kernel
def swp_offset(entry: int) -> int:
    """Return where an entry points: of the swap area, its slot."""
    return entry >> PAGE_SHIFT


@kernel
def is_swap_pte(pte: int) -> int:
    """Tell whether a pte names a slot of the swap area."""
    return (pte & SWAP_ENTRY_BITS) == SWAP_ENTRY


@kernel
def pte_to_swp_entry(pte: int) -> int:
    """Return a pte that names a slot without the bits that belong to its page."""
    return pte & ~Pte.UFFD_WP
