# SPDX-License-Identifier: MIT
"""A write to a page that others share is done in place.

Synthetic: the question of copy on write is not asked.

Parent and child see what the other writes.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "write_after_a_fork"


@kernel
def wp_can_reuse(page: int) -> int:
    """Say yes."""
    return 1
