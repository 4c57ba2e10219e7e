# SPDX-License-Identifier: MIT
"""Map a block, write its header, unmap it: malloc and free of large blocks (will-it-scale).

That is what malloc and free of a block above the mmap threshold do: `size` is 132 KiB (128 KiB
and the header's page; 128 MiB in will-it-scale), `pages` is 1 (the header).
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE
from spfemu.primitives import load
from spfemu.workloads.common import write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, table_frames

DEFAULTS = Parameters(size=(128 << 10) + PAGE_SIZE, pages=1)


def needs(parameters: Parameters) -> Needs:
    """One area per worker."""
    pages = parameters.pages * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """One block."""
    return 1


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Write to the first pages."""
    return write_pages(cpu, area, area + (load(cpu + Param.PAGES) << PAGE_SHIFT))
