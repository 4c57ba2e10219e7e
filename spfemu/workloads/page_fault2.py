# SPDX-License-Identifier: MIT
"""Write to a mapped private file by pages: data of programs and libraries (will-it-scale).

Each fault copies a page of the page cache.  `size` is the file of each worker: 16 MiB here, 128 MiB
there.
"""

from spfemu.kernel import kernel
from spfemu.workloads.common import write_pages
from spfemu.workloads.parameters import Needs, Parameters, file_frames, table_frames

EXTENDS = "mmap2"
DEFAULTS = Parameters(size=16 << 20)
FAULTS = True


def needs(parameters: Parameters) -> Needs:
    """A file per worker, all of it in the page cache, and a copy of each of its pages."""
    workers = parameters.workers
    pages = parameters.size_pages * workers
    cached = file_frames(parameters)
    frames = cached + pages + table_frames(pages, workers)
    return Needs(frames, workers, files=workers, cached=cached)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Write to every page."""
    return write_pages(cpu, area, area + size)
