# SPDX-License-Identifier: MIT
"""Read a mapped private file page by page: program code, mapped databases (will-it-scale).

All pages are in the page cache after the first operation.  A fault maps up to 16 of them.  `size`
is the file of each worker: 16 MiB here, 128 MiB there.
"""

from spfemu.kernel import kernel
from spfemu.workloads.common import read_pages
from spfemu.workloads.parameters import Needs, Parameters, file_frames, table_frames

EXTENDS = "mmap2"
DEFAULTS = Parameters(size=16 << 20)
FAULTS = True


def needs(parameters: Parameters) -> Needs:
    """A file per worker, all of it in the page cache."""
    workers = parameters.workers
    tables = table_frames(parameters.size_pages * workers, workers)
    cached = file_frames(parameters)
    return Needs(cached + tables, workers, files=workers, cached=cached)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Read every page."""
    return read_pages(cpu, area, area + size)
