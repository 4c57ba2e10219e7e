# SPDX-License-Identifier: MIT
"""A fault that finds its entry filled returns with the page-table lock held.

A class of bug that static checkers hunt: the error path that forgets to unlock.

The next fault in these 2 MiB waits for ever.
"""

from spfemu.events import Event
from spfemu.kernel import around, proceed
from spfemu.layout import CPU, VMF, WORD
from spfemu.mm.spinlock import spin_trylock
from spfemu.primitives import load

PROTOCOL = "spf"
PROMISE = "PROGRESS"
SCHEDULE = "two_writes_to_a_new_page"


@around
def do_anonymous_write(cpu: int, vmf: int) -> int:
    """Take the lock again if the page was not needed."""
    lost = load(cpu + CPU.event + Event.ANON_LOST * WORD)
    result = proceed(cpu, vmf)
    if load(cpu + CPU.event + Event.ANON_LOST * WORD) != lost:
        spin_trylock(cpu, load(vmf + VMF.ptl))
    return result
