# SPDX-License-Identifier: MIT
"""What writers do for protocols that lock or count single VMAs: by itself, nothing.

The functions stand where Linux 6.4 and 6.15 (include/linux/mm.h, mmap_lock.h) and Dufour's patch
set v12 have theirs, and are empty.  A protocol that needs one replaces it by name; in the code of
the others they leave no trace.
"""

from spfemu.kernel import kernel


@kernel
def vma_slab_typesafe() -> int:
    """Tell whether freed VMAs are used again at once, though lookups may meet them: 0 or 1."""
    return 0


@kernel
def vma_lock_init(cpu: int, vma: int) -> None:
    """Prepare the lock of a VMA that has just been allocated."""


@kernel
def vma_start_write(cpu: int, vma: int) -> None:
    """Lock `vma` for writing until vma_end_write_all; the mmap lock is held for writing.

    Called before the first change of a VMA that faults can find, and may wait for its readers.
    """


@kernel
def vmas_start_write(cpu: int, vma: int, end: int) -> None:
    """Lock `vma` and all behind it that start below `end`."""


@kernel
def vma_end_write_all(cpu: int, mm: int) -> None:
    """Unlock all VMAs of the mm; the caller is about to release or downgrade the mmap lock."""


@kernel
def vma_end_read(cpu: int, vma: int) -> None:
    """Unlock a VMA that a fault has locked (FAULT_FLAG_VMA_LOCK)."""


@kernel
def vma_mark_attached(cpu: int, vma: int) -> None:
    """Say that `vma`, whose fields are set, is about to enter the tree."""


@kernel
def vma_mark_detached(cpu: int, vma: int) -> None:
    """Say that `vma` has left the tree and the caches; it is locked for writing."""


@kernel
def vmas_mark_detached(cpu: int, vma: int) -> None:
    """Say so of all VMAs of a list linked by vm_next."""


@kernel
def vm_write_begin(vma: int) -> None:
    """Begin to change fields of `vma`, or ptes according to them; does not nest."""


@kernel
def vm_write_end(vma: int) -> None:
    """End it."""


@kernel
def mm_write_seqlock(mm: int) -> None:
    """Begin to change the tree of VMAs."""


@kernel
def mm_write_sequnlock(mm: int) -> None:
    """End it."""
