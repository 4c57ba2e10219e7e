# SPDX-License-Identifier: MIT
"""up_write lets go of the lock without a release.

What the release in rwsem's up_write is for; on x86 every atomic update is one.

A writer marks a VMA as locked under the VMA's lock. A fault takes that lock afterwards, does
not see the mark, and uses the VMA while the writer changes it.
"""

from spfemu.kernel import kernel
from spfemu.layout import RWSEM
from spfemu.mm.rwsem_waiters import rwsem_wake
from spfemu.mm.rwsem_words import RWSEM_FLAG_WAITERS, RWSEM_WRITER_LOCKED
from spfemu.primitives import atomic_fetch_add_relaxed, write_once

PROTOCOL = "vma-lock"
PROMISE = "TORN_READ"
SCHEDULE = "fault_before_the_vma_is_seen_locked"
WEAK_MEMORY = True


@kernel
def up_write(cpu: int, sem: int) -> None:
    """Let go of the lock as rwsem does, but for the release."""
    write_once(sem + RWSEM.owner, 0)
    count = atomic_fetch_add_relaxed(sem + RWSEM.count, -RWSEM_WRITER_LOCKED)
    if count & RWSEM_FLAG_WAITERS:
        rwsem_wake(cpu, sem)
