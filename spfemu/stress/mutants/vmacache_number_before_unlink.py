# SPDX-License-Identifier: MIT
"""The number that invalidates the caches of VMAs is a plain store.

M35, by the order of memory instead of that of the code: the release in vmacache_invalidate is
for lookups without the mmap lock, which the kernel of 5.12 did not have.

A speculative lookup takes over the new number, finds the VMA still in the tree and caches it.
The locked lookup that follows takes it from the cache when it is free.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM
from spfemu.primitives import load, write_once

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "lookup_beside_a_late_unlink"
ID = "M35"
WEAK_MEMORY = True


@kernel
def vmacache_invalidate(mm: int) -> None:
    """Count up, with nothing before it."""
    write_once(mm + MM.vmacache_seqnum, load(mm + MM.vmacache_seqnum) + 1)
