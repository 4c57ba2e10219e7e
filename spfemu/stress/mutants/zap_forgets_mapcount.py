# SPDX-License-Identifier: MIT
"""Unmapping does not count the mappings of a page down.

A slip of a reference count.

Pages look mapped for ever: reclaim and collapse leave them alone.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "write_after_a_fork"


@kernel
def page_remove_rmap(page: int) -> None:
    """Count nothing."""
