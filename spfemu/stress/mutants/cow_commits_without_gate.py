# SPDX-License-Identifier: MIT
"""The second gate of a copy on write, behind the copy, asks nothing.

Synthetic: the first gate was passed under the same lock, so the fault seems to be past it. But
the lock was dropped for the copy.

A copy is mapped in an entry that another process or a new mapping has by now.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import VMF
from spfemu.mm.flags import FaultFlag
from spfemu.primitives import load, store

PROTOCOL = "spf"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "copy_beside_munmap"


@around
def wp_page_map_copy(cpu: int, vmf: int, old: int, page: int) -> int:
    """Pretend that the fault holds the mmap lock from here on."""
    store(vmf + VMF.flags, load(vmf + VMF.flags) & ~FaultFlag.SPECULATIVE)
    return proceed(cpu, vmf, old, page)
