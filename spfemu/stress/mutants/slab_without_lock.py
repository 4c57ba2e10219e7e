# SPDX-License-Identifier: MIT
"""Free objects are taken off a list without its lock.

Synthetic: two CPUs take the same object.

Two processes have one mm_struct, two files one struct.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.primitives import load, store

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "two_forks"


@kernel
def slab_take(cpu: int, lock: int, free: int, link: int) -> int:
    """Take it."""
    system = load(cpu + CPU.system)
    slot = load(system + free)
    if slot != 0:
        store(system + free, load(slot + link))
    return slot
