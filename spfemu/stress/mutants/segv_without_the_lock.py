# SPDX-License-Identifier: MIT
"""A speculative fault that finds no VMA is a segmentation fault at once.

M34: only the locked path may decide that an address is not mapped.

A program is killed for a touch of its own memory, because a lookup without a lock came by while
the tree was being changed elsewhere.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import VMA
from spfemu.mm.flags import VmFault
from spfemu.mm.rbtree_latch import vma_rb_lookup
from spfemu.primitives import load

PROTOCOL = "spf"
PROMISE = "OUTCOME"
SCHEDULE = "read_beside_a_merge"
ID = "M34"


@around
def do_speculative_fault(cpu: int, mm: int, address: int, flags: int) -> int:
    """Look once and believe it."""
    vma = vma_rb_lookup(mm, address)
    if vma == 0 or load(vma + VMA.vm_start) > address:
        return VmFault.SIGSEGV
    return proceed(cpu, mm, address, flags)
