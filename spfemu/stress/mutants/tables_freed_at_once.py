# SPDX-License-Identifier: MIT
"""Page tables are freed without waiting for a grace period.

M32: whoever walks without a lock relies on tables staying what they are.

A speculative fault takes and releases a lock in memory that is another table by now, whose holder
loses it.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import CPU
from spfemu.mm.flags import PageKind
from spfemu.mm.page_alloc import page_kind
from spfemu.mm.pgtable import free_table_now
from spfemu.primitives import load

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "lock_of_a_table_beside_munmap"
ID = "M32"


@around
def call_rcu(cpu: int, obj: int) -> None:
    """Free tables now."""
    if obj >= load(cpu + CPU.vma_slab_end) and page_kind(obj) == PageKind.TABLE:
        free_table_now(cpu, obj)
    else:
        proceed(cpu, obj)
