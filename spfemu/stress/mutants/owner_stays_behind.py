# SPDX-License-Identifier: MIT
"""Who releases a lock held for writing leaves its name there as the owner.

Synthetic. Optimistic spinning goes by that name; Linux has had to repair what it may read by it
more than once.

Writers spin for a lock whose owner has gone long ago, and crash reports blame the wrong CPU.
"""

from spfemu.kernel import kernel
from spfemu.layout import RWSEM
from spfemu.mm.rwsem_waiters import rwsem_wake
from spfemu.mm.rwsem_words import RWSEM_FLAG_WAITERS, RWSEM_WRITER_LOCKED
from spfemu.primitives import atomic_fetch_add_release

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "one_by_one"


@kernel
def up_write(cpu: int, sem: int) -> None:
    """Release and wake, no more."""
    # the release pairs with every acquire of `count`, as in the function that this replaces
    count = atomic_fetch_add_release(sem + RWSEM.count, -RWSEM_WRITER_LOCKED)
    if count & RWSEM_FLAG_WAITERS:
        rwsem_wake(cpu, sem)
