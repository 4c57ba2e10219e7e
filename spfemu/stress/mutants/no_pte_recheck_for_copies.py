# SPDX-License-Identifier: MIT
"""A copy on write is mapped though the entry has changed while the lock was dropped.

Synthetic: pte_same is what a copy without a lock relies on.

What another thread has written to its own copy meanwhile is lost.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import VMF
from spfemu.primitives import load, read_once, store

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "two_writes_after_a_read"


@around
def pte_map_lock(cpu: int, vmf: int) -> int:
    """Take what is there now for what was there."""
    locked = proceed(cpu, vmf)
    if locked:
        store(vmf + VMF.orig_pte, read_once(load(vmf + VMF.pte)))
    return locked
