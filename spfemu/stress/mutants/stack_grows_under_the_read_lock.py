# SPDX-License-Identifier: MIT
"""A stack grows under the mmap lock for reading.

M28: so did Linux up to 6.4. vm_start and vm_pgoff move one after the other, and mmap_seq does
not. M21 (StackRot, CVE-2023-3269) is of the same family.

A speculative fault copies one without the other and gives its page an index at which nobody finds
it.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.mm.stack import expand_downwards
from spfemu.mm.vma import find_vma
from spfemu.primitives import load

PROTOCOL = "spf"
PROMISE = "TORN_READ"
SCHEDULE = "a_fault_beside_a_growing_stack"
ID = "M28"


@kernel
def expand_stack_slowpath(cpu: int, mm: int, address: int) -> int:
    """Grow under the lock that the fault has."""
    vma = find_vma(cpu, mm, address)
    if vma != 0 and load(vma + VMA.vm_start) > address:
        if expand_downwards(cpu, mm, vma, address) == 0:
            vma = 0
    return vma
