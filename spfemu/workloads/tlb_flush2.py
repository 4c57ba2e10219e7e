# SPDX-License-Identifier: MIT
"""Write, purge and read page by page: allocators that purge at once (will-it-scale).

Each page that is purged is a flush of the other CPUs' TLBs.  `size` is the area: 1 MiB as there.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import Errno, Madv
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.syscalls import sys_madvise
from spfemu.workloads.parameters import Parameters

EXTENDS = "page_fault1"
DEFAULTS = Parameters(size=1 << 20)


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Write, purge and read each page; -EFAULT if the read finds what it should not."""
    address = area
    while address < area + size:
        result = user_write(cpu, address, 1)
        if result < 0:
            return result
        result = sys_madvise(cpu, address, PAGE_SIZE, Madv.DONTNEED)
        if result < 0:
            return result
        result, value = user_read(cpu, address)
        if result < 0:
            return result
        if value != purged_value():
            return -Errno.EFAULT
        address += PAGE_SIZE
    return 0


@kernel
def purged_value() -> int:
    """What a page holds once it was purged."""
    return 0
