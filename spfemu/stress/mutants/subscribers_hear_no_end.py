# SPDX-License-Identifier: MIT
"""Subscribers are told that an invalidation begins, never that it ends.

Patches 22 to 26 of the series exist because a subscriber must hear of both or of neither.

The subscriber lets its readers wait until the invalidation is over: for ever.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "NOTIFIERS"
SCHEDULE = "a_subscriber_hears_of_a_drop"


@kernel
def mmu_notifier_invalidate_range_end(cpu: int, mm: int, start: int, end: int) -> None:
    """Say nothing."""
