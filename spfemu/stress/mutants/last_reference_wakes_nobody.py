# SPDX-License-Identifier: MIT
"""The last reference to a VMA is dropped without waking the writer that waits for it.

Synthetic; the wake-up is where Linux had M19.

The writer sleeps for ever, with the mmap lock.
"""

from spfemu.kernel import kernel

PROTOCOL = "vma-refcount"
PROMISE = "PROGRESS"
SCHEDULE = "a_locked_vma_beside_munmap"


@kernel
def vma_wake_writer(mm: int) -> None:
    """Let it sleep."""
