# SPDX-License-Identifier: MIT
"""A writer that releases the mmap lock does not wake who waits for it.

Lost wake-ups of rwsems: 6.0 (handoff), 5.x (reader bias).

Who waits sleeps for ever.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "PROGRESS"
SCHEDULE = "write_beside_a_writer"


@kernel
def rwsem_wake(cpu: int, sem: int) -> None:
    """Wake nobody."""
