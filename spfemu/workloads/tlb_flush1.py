# SPDX-License-Identifier: MIT
"""Write, purge and read a private file by pages: undo of changes (will-it-scale).

As tlb_flush2, but of a file: the write copies a page, and the purge brings the file's back.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Map
from spfemu.primitives import load
from spfemu.workloads import page_fault1
from spfemu.workloads.common import create_own_file, map_own_file
from spfemu.workloads.parameters import Needs, Param, Parameters, file_frames

EXTENDS = "tlb_flush2"


def needs(parameters: Parameters) -> Needs:
    """The files in the page cache besides."""
    anonymous = page_fault1.needs(parameters)
    cached = file_frames(parameters)
    return Needs(anonymous.frames + cached, anonymous.vmas, files=parameters.workers, cached=cached)


@kernel
def workload_setup(cpu: int) -> int:
    """Make the file."""
    return create_own_file(cpu, load(cpu + Param.SIZE))


@kernel
def map_area(cpu: int, size: int) -> int:
    """Map the file privately; the address or -errno."""
    return map_own_file(cpu, size, Map.PRIVATE)
