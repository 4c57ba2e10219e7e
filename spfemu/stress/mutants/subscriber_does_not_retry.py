# SPDX-License-Identifier: MIT
"""A subscriber keeps what it has looked up while something was being invalidated.

mmu_notifier_retry, as KVM uses it: a lookup holds nothing.

It goes on using the frame that has just been replaced.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "NOTIFIERS"
SCHEDULE = "a_subscriber_looks_up_during_a_copy"


@kernel
def mmu_notifier_retry(subscription: int, seq: int) -> int:
    """Say that nothing was."""
    return 0
