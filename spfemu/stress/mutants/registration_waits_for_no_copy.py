# SPDX-License-Identifier: MIT
"""Who subscribes does not wait for the speculative copies that are under way.

M03, on the other side: a percpu-rwsem has a writer that waits for readers.

A subscriber hears of an end without a start.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "NOTIFIERS"
SCHEDULE = "a_subscriber_comes_during_a_copy"
ID = "M03"


@kernel
def percpu_wait_for_readers(cpu: int, sem: int) -> None:
    """Wait for nobody."""
