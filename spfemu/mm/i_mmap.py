# SPDX-License-Identifier: MIT
"""Which VMAs map a file (Linux 5.12, mm/mmap.c, mm/interval_tree.c).

Who takes pages away from a file finds its mappings here, in whatever process they are, and needs
i_mmap_rwsem for that; so does who changes the range or the offset of a VMA of a file.  Differs in
that a list takes the place of the interval tree.

A VMA stays on the list until its pages are unmapped and leaves it before its page tables are freed.
"""

from spfemu.kernel import kernel
from spfemu.layout import ADDRESS_SPACE, FILE, VMA
from spfemu.mm.rwsem import down_write, up_write
from spfemu.primitives import load, store


@kernel
def vma_mapping(vma: int) -> int:
    """Return the ADDRESS_SPACE that `vma` maps, or 0."""
    file = load(vma + VMA.vm_file)
    return load(file + FILE.f_mapping) if file != 0 else 0


@kernel
def vma_i_mmap_lock(cpu: int, vma: int) -> None:
    """Lock the list that `vma` is on, if it is one of a file (vma_prepare, take_rmap_locks)."""
    mapping = vma_mapping(vma)
    if mapping != 0:
        down_write(cpu, mapping + ADDRESS_SPACE.i_mmap_rwsem)


@kernel
def vma_i_mmap_unlock(cpu: int, vma: int) -> None:
    """Unlock it."""
    mapping = vma_mapping(vma)
    if mapping != 0:
        up_write(cpu, mapping + ADDRESS_SPACE.i_mmap_rwsem)


@kernel
def __vma_link_file(vma: int, after: int) -> None:
    """Put `vma` behind `after`, or first (0), if it is one of a file; needs the lock."""
    mapping = vma_mapping(vma)
    if mapping == 0:
        return
    following = load(mapping + ADDRESS_SPACE.i_mmap)
    if after != 0:
        following = load(after + VMA.shared_next)
        store(after + VMA.shared_next, vma)
    else:
        store(mapping + ADDRESS_SPACE.i_mmap, vma)
    store(vma + VMA.shared_prev, after)
    store(vma + VMA.shared_next, following)
    if following != 0:
        store(following + VMA.shared_prev, vma)


@kernel
def vma_link_file(cpu: int, vma: int, after: int) -> None:
    """Lock the list and put `vma` behind `after`, or first (0).

    A fork's child stands behind its parent: who goes through the list meets a page in the child
    that was copied after it had passed the parent's VMA, or has taken it from the parent before.
    """
    if load(vma + VMA.vm_file) != 0:
        vma_i_mmap_lock(cpu, vma)
        __vma_link_file(vma, after)
        vma_i_mmap_unlock(cpu, vma)


@kernel
def __remove_shared_vm_struct(vma: int) -> None:
    """Take `vma` off the list, if it is one of a file; needs the lock."""
    mapping = vma_mapping(vma)
    if mapping == 0:
        return
    following = load(vma + VMA.shared_next)
    prev = load(vma + VMA.shared_prev)
    if prev != 0:
        store(prev + VMA.shared_next, following)
    else:
        store(mapping + ADDRESS_SPACE.i_mmap, following)
    if following != 0:
        store(following + VMA.shared_prev, prev)


@kernel
def unlink_file_vmas(cpu: int, vma: int) -> None:
    """Take `vma` and all behind it by vm_next off their lists; they map no page any more."""
    while vma != 0:
        if load(vma + VMA.vm_file) != 0:
            vma_i_mmap_lock(cpu, vma)
            __remove_shared_vm_struct(vma)
            vma_i_mmap_unlock(cpu, vma)
        vma = load(vma + VMA.vm_next)
