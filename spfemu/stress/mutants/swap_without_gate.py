# SPDX-License-Identifier: MIT
"""A speculative fault brings back a swapped page like one under the mmap lock.

The first versions of the series did it with the gate; version 2 leaves it to the locked path.

The page is mapped in memory that is being unmapped.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "swap_in_beside_munmap"


@kernel
def swap_fault_allowed(cpu: int, vmf: int) -> int:
    """Allow all."""
    return 1
