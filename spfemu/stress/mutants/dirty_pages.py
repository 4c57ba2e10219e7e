# SPDX-License-Identifier: MIT
"""Pages are handed out as their last user left them.

Synthetic; __GFP_ZERO forgotten.

A program reads another one's data in memory that is new to it.
"""

from spfemu.kernel import kernel
from spfemu.mm.memory import vmf_alloc_page

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "new_pages_are_zero"


@kernel
def vmf_alloc_zeroed_page(cpu: int, vmf: int) -> int:
    """Clear nothing."""
    return vmf_alloc_page(cpu, vmf)
