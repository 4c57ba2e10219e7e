# SPDX-License-Identifier: MIT
"""A fault does not wait for a page that somebody has locked.

Synthetic: a page is locked while it is read.

What the frame held before is taken for the contents of the page.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "a_fault_while_a_page_is_read"


@kernel
def lock_page_or_retry(cpu: int, vmf: int, page: int) -> int:
    """Take the lock for taken."""
    return 1
