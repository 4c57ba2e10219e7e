# SPDX-License-Identifier: MIT
"""Entries of ptes that map no frame and are not empty (Linux 6.1, include/linux/swapops.h).

Such a pte is neither PRESENT nor PROTNONE.  Bits 2 to 4 say what it is, bits 12 and up where;
UFFD_WP means what it means in a pte that maps a frame.
"""

from enum import IntEnum

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT
from spfemu.mm.flags import Pte


class SwpType(IntEnum):
    """What an entry is (SWP_MIGRATION_READ and its kin; the marker: SWP_PTE_MARKER)."""

    SWAP = 1
    MIGRATION = 2
    MARKER = 3


SWP_TYPE_SHIFT = 2
SWP_TYPE_MASK = 7
NOT_MAPPING = int(Pte.PRESENT | Pte.PROTNONE)
SWAP_ENTRY = int(SwpType.SWAP) << SWP_TYPE_SHIFT
"""What all entries of the swap area have in common."""
SWAP_ENTRY_BITS = NOT_MAPPING | (SWP_TYPE_MASK << SWP_TYPE_SHIFT)


@kernel
def swp_entry_to_pte(kind: int, offset: int) -> int:
    """Return the pte of an entry."""
    return (kind << SWP_TYPE_SHIFT) | (offset << PAGE_SHIFT)


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
