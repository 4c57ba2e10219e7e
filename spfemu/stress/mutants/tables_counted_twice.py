# SPDX-License-Identifier: MIT
"""A new page table is counted twice.

"BUG: non-zero pgtables_bytes on freeing mm": Linux says so since 4.15, and has had to for folded
levels and for huge pages.

The OOM killer takes a process for larger than it is.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import MM
from spfemu.primitives import atomic_fetch_add_relaxed

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "one_by_one"


@around
def table_alloc(cpu: int, mm: int, slot: int) -> int:
    """Link it, and count again."""
    entry = proceed(cpu, mm, slot)
    atomic_fetch_add_relaxed(mm + MM.pgtables, 1)
    return entry
