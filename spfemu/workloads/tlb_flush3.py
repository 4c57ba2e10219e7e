# SPDX-License-Identifier: MIT
"""Write, purge and read a shared file by pages: caches that drop mappings (will-it-scale).

As tlb_flush1, but what was written is in the file, so it is what is read.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Map
from spfemu.workloads.common import map_own_file

EXTENDS = "tlb_flush1"


@kernel
def map_area(cpu: int, size: int) -> int:
    """Map the file shared; the address or -errno."""
    return map_own_file(cpu, size, Map.SHARED)


@kernel
def purged_value() -> int:
    """Return what a page holds once it was purged: what was written."""
    return 1
