# SPDX-License-Identifier: MIT
"""Nothing orders the changes of a VMA before its even count.

M15, for the counts of single VMAs: vm_write_end of Laurent Dufour's series.

A fault that begins after the count is even copies a VMA of which one change is still to come.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.primitives import read_once, write_once

PROTOCOL = "spf-vma"
PROMISE = "TORN_READ"
SCHEDULE = "fault_after_the_even_count_is_visible"
ID = "M15"
WEAK_MEMORY = True


@kernel
def vm_write_end(vma: int) -> None:
    """Count up, with nothing before it."""
    write_once(vma + VMA.vm_sequence, read_once(vma + VMA.vm_sequence) + 1)
