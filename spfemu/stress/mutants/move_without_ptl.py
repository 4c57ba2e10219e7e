# SPDX-License-Identifier: MIT
"""mremap moves entries without the page-table locks.

M02: Android bug 263177905, where mremap moved whole tables past the lock of their ptes. Whoever
moves entries has to take the lock behind which a speculative fault commits.

A fault that has passed its gate maps its page where the others have just been taken away from,
and what was written to it is lost.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, WORD
from spfemu.mm.pgtable import pte_offset, set_pte
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.primitives import xchg

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "write_behind_the_gate_beside_mremap"
ID = "M02"


@kernel
def move_ptes(
    cpu: int, mm: int, old_pmd: int, old: int, new_pmd: int, new: int, extent: int
) -> None:
    """Move without a lock."""
    pte = pte_offset(old_pmd, old)
    new_pte = pte_offset(new_pmd, new)
    last = pte + (extent >> PAGE_SHIFT) * WORD
    while pte < last:
        set_pte(new_pte, xchg(pte, 0))
        pte += WORD
        new_pte += WORD
    flush_tlb_mm(cpu, mm)
