# SPDX-License-Identifier: MIT
"""A page table that is linked replaces one that another fault has linked just before.

Synthetic: __pte_alloc looks at the entry again under the lock because faults share the mmap lock.

All pages of the first table are lost with it.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, PAGE
from spfemu.mm.flags import PageKind
from spfemu.mm.page_alloc import alloc_zeroed_page, page_address
from spfemu.mm.pgtable import TABLE_BITS, set_pte
from spfemu.primitives import atomic_fetch_add_relaxed, store

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "two_faults_make_tables"


@kernel
def table_alloc(cpu: int, mm: int, slot: int) -> int:
    """Link without a second look."""
    page = alloc_zeroed_page(cpu, PageKind.TABLE)
    if page == 0:
        return 0
    store(page + PAGE.ptl, 0)
    store(page + PAGE.private, mm)
    store(page + PAGE.mapping, 0)
    entry = page_address(cpu, page) | TABLE_BITS
    set_pte(slot, entry)
    atomic_fetch_add_relaxed(mm + MM.pgtables, 1)
    return entry
