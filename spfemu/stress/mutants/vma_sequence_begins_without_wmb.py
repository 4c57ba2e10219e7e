# SPDX-License-Identifier: MIT
"""Nothing orders a VMA's odd count before the changes of the VMA.

M15, for the counts of single VMAs: vm_write_begin of Laurent Dufour's series, which took them
from write_seqcount_begin.

A fault copies the VMA between two changes and finds its count even all the time. Its page gets
the index of another address.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.primitives import read_once, write_once

PROTOCOL = "spf-vma"
PROMISE = "TORN_READ"
SCHEDULE = "fault_before_the_odd_count_of_its_vma_is_visible"
ID = "M15"
WEAK_MEMORY = True


@kernel
def vm_write_begin(vma: int) -> None:
    """Count up, with nothing behind it."""
    write_once(vma + VMA.vm_sequence, read_once(vma + VMA.vm_sequence) + 1)
