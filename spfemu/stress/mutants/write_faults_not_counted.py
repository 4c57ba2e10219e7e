# SPDX-License-Identifier: MIT
"""Faults for writing are not told from others.

Synthetic: a counter of vmstat that a new path forgets.

The numbers that a comparison of protocols goes by do not add up.
"""

from spfemu.events import Event
from spfemu.kernel import around, proceed

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "one_by_one"


@around
def count_vm_event(cpu: int, event: int) -> None:
    """Count all others."""
    if event != Event.FAULT_WRITE:
        proceed(cpu, event)
