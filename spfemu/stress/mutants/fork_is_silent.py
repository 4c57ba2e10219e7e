# SPDX-License-Identifier: MIT
"""A fork does not say that it takes the right to write from entries.

57efa1fe5957 (Linux 5.11): write_protect_seq, for pins that take no lock.

A page is pinned just when it becomes shared, and the next write takes it away from its device.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "pin_beside_a_fork"


@kernel
def write_protect_seqcount_begin(mm: int) -> None:
    """Say nothing."""


@kernel
def write_protect_seqcount_end(mm: int) -> None:
    """Say nothing."""
