# SPDX-License-Identifier: MIT
"""A VMA is locked while the list of its file's VMAs is locked already.

M23: the first repair of the fork in 6.4 locked a new VMA inside of i_mmap_rwsem; Hugh Dickins
turned the two round.

A fault that holds the VMA and waits for the file, beside a writer that has the file and waits for
the fault, is a deadlock; it takes years to meet, the order of locks tells at once.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import VMA
from spfemu.mm.i_mmap import vma_mapping
from spfemu.mm.rwsem import down_write, up_write

PROTOCOL = "vma-lock"
PROMISE = "LOCK_ORDER"
ID = "M23"


@around
def vma_i_mmap_lock(cpu: int, vma: int) -> None:
    """Wait for the faults of the VMA only then."""
    proceed(cpu, vma)
    if vma_mapping(vma) != 0:
        down_write(cpu, vma + VMA.vm_lock)
        up_write(cpu, vma + VMA.vm_lock)
