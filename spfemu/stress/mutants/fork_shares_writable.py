# SPDX-License-Identifier: MIT
"""A fork leaves private pages writable for parent and child.

Synthetic: is_cow_mapping says no.

Parent and child see what the other writes.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "write_and_fork"


@kernel
def is_cow_mapping(vm_flags: int) -> int:
    """Say no."""
    return 0
