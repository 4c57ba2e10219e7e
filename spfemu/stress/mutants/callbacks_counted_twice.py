# SPDX-License-Identifier: MIT
"""What is queued for a grace period is counted twice.

Synthetic: the length of a segmented list of callbacks, which Linux checks for the same reason.

Who waits until the queue has been worked off waits for callbacks that do not exist.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import CPU, RCU_QUEUE
from spfemu.primitives import load, store

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "one_by_one"


@around
def call_rcu(cpu: int, obj: int) -> None:
    """Queue it, and count again."""
    proceed(cpu, obj)
    nr = cpu + CPU.rcu + RCU_QUEUE.nr
    store(nr, load(nr) + 1)
