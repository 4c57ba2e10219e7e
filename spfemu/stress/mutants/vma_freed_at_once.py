# SPDX-License-Identifier: MIT
"""A VMA is freed at once, though its process has other threads.

M29: the test for a single thread goes by a count that is out of date.

A lookup without a lock reads memory that is another VMA by now.
"""

from spfemu.kernel import kernel
from spfemu.mm.vma import vm_area_free_rcu

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "copy_of_a_vma_beside_munmap"
ID = "M29"


@kernel
def vm_area_free(cpu: int, vma: int) -> None:
    """Wait for nobody."""
    vm_area_free_rcu(cpu, vma)
