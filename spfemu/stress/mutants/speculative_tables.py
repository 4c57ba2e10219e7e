# SPDX-License-Identifier: MIT
"""A speculative fault makes the page tables that it misses.

M09: patch 16 of the series says why it must not: the tables may be made after free_pgtables.

A table stays behind where nothing is mapped, and is never freed.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.pgtable import alloc_pmd, table_alloc
from spfemu.primitives import read_once

PROTOCOL = "spf"
PROMISE = "ACCOUNTING"
SCHEDULE = "read_without_tables_beside_munmap"
ID = "M09"


@around
def do_handle_mm_fault(cpu: int, mm: int, address: int, flags: int, seq: int) -> int:
    """Make them as handle_mm_fault does."""
    slot = alloc_pmd(cpu, mm, address)
    if slot != 0 and read_once(slot) == 0:
        table_alloc(cpu, mm, slot)
    return proceed(cpu, mm, address, flags, seq)
