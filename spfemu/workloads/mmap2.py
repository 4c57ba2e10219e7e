# SPDX-License-Identifier: MIT
"""Map and unmap a private file without touching: loaders, file scanners (will-it-scale).

As mmap1, but of a file that each worker has for itself.
"""

from dataclasses import replace

from spfemu.kernel import kernel
from spfemu.mm.flags import Map
from spfemu.primitives import load
from spfemu.workloads import mmap1
from spfemu.workloads.common import create_own_file, map_own_file
from spfemu.workloads.parameters import Needs, Param, Parameters

EXTENDS = "mmap1"


def needs(parameters: Parameters) -> Needs:
    """A file per worker besides."""
    return replace(mmap1.needs(parameters), files=parameters.workers)


@kernel
def workload_setup(cpu: int) -> int:
    """Make the file."""
    return create_own_file(cpu, load(cpu + Param.SIZE))


@kernel
def map_area(cpu: int, size: int) -> int:
    """Map the file privately; the address or -errno."""
    return map_own_file(cpu, size, Map.PRIVATE)
