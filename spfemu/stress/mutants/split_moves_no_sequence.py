# SPDX-License-Identifier: MIT
"""A split does not move the sequence count of the VMA that it changes.

Dufour's series brackets each change by vm_write_begin and vm_write_end, in dozens of places.

A fault goes on with the start of one state and the offset of another.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf-vma"
PROMISE = "TORN_READ"
SCHEDULE = "copy_of_a_vma_beside_a_split"


@kernel
def vm_write_begin(vma: int) -> None:
    """Begin unseen."""


@kernel
def vm_write_end(vma: int) -> None:
    """End unseen."""
