# SPDX-License-Identifier: MIT
"""New flags for a part of a VMA: cut it out, or join it with a neighbour that has them already.

Source: mm/vma.c: vma_modify_flags (Linux 6.18), which mprotect, mlock and madvise share.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, VMA
from spfemu.mm.vma import split_vma, vma_merge
from spfemu.mm.vma_write import vm_write_begin, vm_write_end, vma_start_write
from spfemu.primitives import load, write_once


@kernel
def vma_modify_flags(
    cpu: int, mm: int, prev: int, vma: int, start: int, end: int, vm_flags: int
) -> tuple[int, int]:
    """See that a VMA is all of [start, end), part of `vma`, or a neighbour with `vm_flags` is.

    Returns (0, that VMA), whose flags are still to be set, or (-ENOMEM, 0).  `prev` is the VMA
    before the range, or the one that contains it if it does not start there.
    """
    uffd = load(vma + VMA.vm_userfaultfd_ctx)
    error, vma = vma_modify_flags_uffd(cpu, mm, prev, vma, start, end, vm_flags, uffd)
    return error, vma


@kernel
def vma_modify_flags_uffd(
    cpu: int, mm: int, prev: int, vma: int, start: int, end: int, vm_flags: int, uffd: int
) -> tuple[int, int]:
    """Do so for new flags together with another userfaultfd context (0: none)."""
    pgoff = load(vma + VMA.vm_pgoff) + ((start - load(vma + VMA.vm_start)) >> PAGE_SHIFT)
    anon_vma = load(vma + VMA.anon_vma)
    file = load(vma + VMA.vm_file)
    merged = vma_merge(cpu, mm, prev, start, end, vm_flags, anon_vma, file, pgoff, uffd)
    if merged != 0:
        return 0, merged
    error = 0
    if start != load(vma + VMA.vm_start):
        error = split_vma(cpu, mm, vma, start, 1)
    if error == 0 and end != load(vma + VMA.vm_end):
        error = split_vma(cpu, mm, vma, end, 0)
    return error, vma if error == 0 else 0


@kernel
def vm_flags_reset(cpu: int, vma: int, vm_flags: int) -> None:
    """Set the flags of `vma` where they do not concern its pages (include/linux/mm.h)."""
    vma_start_write(cpu, vma)
    vm_write_begin(vma)
    write_once(vma + VMA.vm_flags, vm_flags)
    vm_write_end(vma)
