# SPDX-License-Identifier: MIT
"""A page is moved to another node though others refer to it.

Synthetic: migration counts references.

A device goes on with the old frame, the process with the new one.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "move_of_a_pinned_page"
CONFIG = {"CONFIG_NUMA": 1}


@kernel
def page_is_shared(page: int) -> int:
    """Say no."""
    return 0
