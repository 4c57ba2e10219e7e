# SPDX-License-Identifier: MIT
"""A fork shares pages that are pinned.

70e806e4e645 (Linux 5.10): they have to be copied at once.

The next write of the parent takes the page away from its device.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "fork_of_a_pinned_page"


@kernel
def page_needs_cow_for_dma(mm: int, page: int) -> int:
    """Say no."""
    return 0
