# SPDX-License-Identifier: MIT
"""Fill fresh memory page by page: programs that start, heaps that grow (will-it-scale).

Map an area, write to every page of it, unmap it, all as `spfemu.workloads.defaults` has it.
`size` is the area of each worker: 16 MiB here, 128 MiB there.
"""

from spfemu.workloads.parameters import Needs, Parameters, table_frames

DEFAULTS = Parameters(size=16 << 20)


def needs(parameters: Parameters) -> Needs:
    """One area per worker."""
    pages = parameters.size_pages * parameters.workers
    return Needs(pages + table_frames(pages, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """Pages touched."""
    return parameters.size_pages
