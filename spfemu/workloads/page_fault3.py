# SPDX-License-Identifier: MIT
"""Write to a mapped shared file by pages: databases that use mmap (will-it-scale).

Each fault makes a page of the page cache dirty.  `size` is the file of each worker: 16 MiB here,
128 MiB there.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Map
from spfemu.workloads.common import map_own_file, write_pages

EXTENDS = "page_fault4"


@kernel
def map_area(cpu: int, size: int) -> int:
    """Map the file shared; the address or -errno."""
    return map_own_file(cpu, size, Map.SHARED)


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Write to every page."""
    return write_pages(cpu, area, area + size)
