# SPDX-License-Identifier: MIT
"""Threads go on caching VMAs that have been unmapped.

CVE-2018-17182: an overflow of the sequence number of the vmacache was overlooked, and threads found
freed VMAs there. Jann Horn, "A cache invalidation bug in Linux memory management".

A lookup finds a VMA that is free or somebody else's.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "one_by_one"


@kernel
def vmacache_invalidate(mm: int) -> None:
    """Tell nobody."""
