# SPDX-License-Identifier: MIT
"""Read memory that was never written: large sparse tables and arrays (will-it-scale).

will-it-scale's page_fault1 with loads for stores.
"""

from spfemu.kernel import kernel
from spfemu.workloads.common import read_pages
from spfemu.workloads.parameters import Needs, Parameters, table_frames

NAME = "page_fault1-read"
EXTENDS = "page_fault1"


def needs(parameters: Parameters) -> Needs:
    """Page tables only: every page is the zero page."""
    pages = parameters.size_pages * parameters.workers
    return Needs(table_frames(pages, parameters.workers), parameters.workers)


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Read every page."""
    return read_pages(cpu, area, area + size)
