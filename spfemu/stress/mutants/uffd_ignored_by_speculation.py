# SPDX-License-Identifier: MIT
"""A speculative fault does not see that a monitor serves the memory.

Patch 13 of the series leaves such faults to the locked path.

A page that the monitor was to fill is filled with zeros, and the monitor hears of nothing.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import VMA
from spfemu.mm.flags import VM_UFFD_FLAGS
from spfemu.primitives import load, store

PROTOCOL = "spf"
PROMISE = "OUTCOME"
SCHEDULE = "read_of_served_memory"


@around
def copy_pvma(pvma: int, vma: int) -> None:
    """Forget the flags."""
    proceed(pvma, vma)
    store(pvma + VMA.vm_flags, load(pvma + VMA.vm_flags) & ~VM_UFFD_FLAGS)
