# SPDX-License-Identifier: MIT
"""The sender of a flush does not wait until the others have flushed.

M32: khugepaged and fast GUP, 2022; the IPI is what keeps walkers with interrupts off safe.

A frame is freed and used again while a CPU has a translation to it, or is about to take a
reference.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "TLB"
SCHEDULE = "pin_beside_dontneed"
ID = "M32"


@kernel
def wait_for_ipi(cpu: int, target: int, ticket: int) -> None:
    """Trust that it will."""
