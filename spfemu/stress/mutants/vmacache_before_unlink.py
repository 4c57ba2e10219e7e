# SPDX-License-Identifier: MIT
"""The caches of VMAs are invalidated before the VMAs leave the tree.

M35: a speculative lookup fills the cache of its thread. That is safe only as long as whoever sees
the new number cannot find the VMA any more.

The locked retry of an aborted fault finds a freed VMA in the cache and maps a page by it.
"""

from spfemu.kernel import around, kernel, proceed
from spfemu.layout import MM
from spfemu.primitives import load, smp_store_release

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "lookup_beside_munmap"
ID = "M35"


@around
def detach_vmas_to_be_unmapped(mm: int, vma: int, prev: int, end: int) -> int:
    """Invalidate first."""
    smp_store_release(mm + MM.vmacache_seqnum, load(mm + MM.vmacache_seqnum) + 1)
    return proceed(mm, vma, prev, end)


@kernel
def vmacache_invalidate(mm: int) -> None:
    """Do nothing where it belongs."""
