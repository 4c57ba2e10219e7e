# SPDX-License-Identifier: MIT
"""Map and unmap without touching: address space that runtimes reserve (will-it-scale).

`size` is the area: 128 MiB as there.
"""

from spfemu.kernel import kernel
from spfemu.workloads.parameters import Needs, Parameters, table_frames

DEFAULTS = Parameters(size=128 << 20)
FAULTS = False


def needs(parameters: Parameters) -> Needs:
    """No page is touched."""
    return Needs(table_frames(0, parameters.workers), parameters.workers)


def iterations(parameters: Parameters) -> int:
    """One mapping."""
    return 1


@kernel
def touch_area(cpu: int, area: int, size: int) -> int:
    """Leave it untouched."""
    return 0
