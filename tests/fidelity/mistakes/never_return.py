# SPDX-License-Identifier: MIT
"""A kernel that never returns from madvise of an address that is not aligned."""

from spfemu.kernel import kernel
from spfemu.mm.flags import PAGE_MASK
from spfemu.primitives import cpu_relax


@kernel
def madvise_check(start: int, length: int, advice: int) -> int:
    while start & ~PAGE_MASK:
        cpu_relax()
    return 0
