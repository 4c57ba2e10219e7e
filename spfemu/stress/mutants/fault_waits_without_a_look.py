# SPDX-License-Identifier: MIT
"""A fault waits for its monitor without looking whether the page has been filled meanwhile.

userfaultfd_must_wait: the wake-up may have come before the fault was in the queue.

It waits for ever.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "PROGRESS"
SCHEDULE = "a_page_is_filled_before_its_fault_waits"


@kernel
def userfaultfd_must_wait(mm: int, address: int, reason: int) -> int:
    """Wait in any case."""
    return 1
