# SPDX-License-Identifier: MIT
"""A collapse clears the entry of a page table and does not flush.

M32: khugepaged and fast GUP (70cbc3cc78a9, 2022): the flush is what walkers with interrupts off
hold off.

A walk takes a reference to a page that has been copied and freed.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import xchg

PROTOCOL = "classic"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "pin_beside_a_collapse"
ID = "M32"


@kernel
def pmdp_collapse_flush(cpu: int, mm: int, slot: int) -> int:
    """Clear the entry."""
    spin_lock(cpu, mm + MM.page_table_lock)
    pmd = xchg(slot, 0)
    spin_unlock(mm + MM.page_table_lock)
    return pmd
