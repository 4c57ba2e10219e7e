# SPDX-License-Identifier: MIT
"""A kernel whose mprotect leaves it to a fault to make pages writable, as before Linux 6.0."""

from spfemu.kernel import kernel


@kernel
def can_change_pte_writable(cpu: int, entry: int) -> int:
    return 0
