# SPDX-License-Identifier: MIT
"""Classes of locks: what a lock guards, whichever object it is in (Linux: lock_class_key).

The values are in the order in which docs/locking.md has locks taken, from the outermost on; from
XA_LOCK on nothing is documented.  Two are no locks: a CPU in an RCU read-side section keeps grace
periods from ending, one with interrupts off keeps whoever has sent it an IPI waiting.
"""

from enum import IntEnum
from typing import Self

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, CPU, MM, RWSEM, SYSTEM
from spfemu.primitives import load


class LockClass(IntEnum):
    """A class of locks; `text` says what one is called."""

    I_RWSEM = 1, "i_rwsem"
    MMAP_LOCK = 2, "mmap_lock"
    MMU_NOTIFIER_LOCK = 3, "mmu_notifier_lock"
    VMA_LOCK = 4, "VMA lock"
    PAGE_LOCK = 5, "page lock"
    MM_ALL_LOCKS = 6, "mm_all_locks"
    I_MMAP = 7, "i_mmap_rwsem"
    ANON_VMA = 8, "anon_vma lock"
    PAGE_TABLE_LOCK = 9, "page_table_lock"
    PTL = 10, "page-table lock"
    NOTIFIER = 11, "lock of an MMU notifier"
    SWAP = 12, "lock of a swap cluster"
    POOL = 13, "pool lock"
    XA_LOCK = 14, "xa_lock"
    UFFD = 15, "userfaultfd lock"
    MM_RB_LOCK = 16, "mm_rb_lock"
    WAIT_LOCK = 17, "wait_lock"
    RCU = 18, "RCU read-side section"
    IRQS_OFF = 19, "section with interrupts off"
    MONITOR = 20, "monitor"
    WORKLOAD = 21, "workload's lock"

    text: str

    @property
    def a_text(self) -> str:
        """The name with its article."""
        return f"{'an' if self.text[0] in 'aiRx' else 'a'} {self.text}"

    def __new__(cls, code: int, text: str) -> Self:
        """Make a member from its code and its name for people."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.text = text
        return member


LAST_SLEEPING = LockClass.I_MMAP
"""For these one may sleep; the others are spun for."""
LAST_DOCUMENTED = LockClass.POOL


@slowpath
def spinlock_class(cpu: int, lock: int) -> int:
    """Return the class of a spinlock, by the area in which it is."""
    system = load(cpu + CPU.system)
    if lock >= load(system + SYSTEM.vmemmap):
        return LockClass.PTL
    if lock >= load(system + SYSTEM.swap_clusters):
        return LockClass.SWAP
    if lock >= load(system + SYSTEM.uffds):
        return LockClass.UFFD
    if lock >= load(system + SYSTEM.vmas):
        return LockClass.WAIT_LOCK
    if lock >= load(system + SYSTEM.notifiers):
        return LockClass.NOTIFIER
    if lock >= load(system + SYSTEM.mappings):
        offset = (lock - load(system + SYSTEM.mappings)) % ADDRESS_SPACE.SIZE
        return LockClass.XA_LOCK if offset == ADDRESS_SPACE.xa_lock else LockClass.WAIT_LOCK
    if lock >= load(system + SYSTEM.anon_vmas):
        return LockClass.ANON_VMA
    if lock >= load(system + SYSTEM.mms):
        offset = (lock - load(system + SYSTEM.mms)) % MM.SIZE
        return LockClass.PAGE_TABLE_LOCK if offset == MM.page_table_lock else LockClass.WAIT_LOCK
    if lock >= load(system + SYSTEM.scratch):
        return LockClass.WORKLOAD
    if lock == system + SYSTEM.mm_all_locks + RWSEM.wait_lock:
        return LockClass.WAIT_LOCK
    return LockClass.POOL


@kernel
def rwsem_class(cpu: int, sem: int) -> int:
    """Return the class of an rw_semaphore."""
    system = load(cpu + CPU.system)
    if sem >= load(system + SYSTEM.vmas):
        return LockClass.VMA_LOCK
    if sem >= load(system + SYSTEM.mappings):
        offset = (sem - load(system + SYSTEM.mappings)) % ADDRESS_SPACE.SIZE
        return LockClass.I_MMAP if offset == ADDRESS_SPACE.i_mmap_rwsem else LockClass.I_RWSEM
    if sem >= load(system + SYSTEM.mms):
        return LockClass.MMAP_LOCK
    return LockClass.MM_ALL_LOCKS
