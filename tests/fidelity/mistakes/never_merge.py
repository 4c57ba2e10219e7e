# SPDX-License-Identifier: MIT
"""A kernel that never merges two VMAs."""

from spfemu.kernel import kernel


@kernel
def vma_merge(
    cpu: int,
    mm: int,
    prev: int,
    addr: int,
    end: int,
    vm_flags: int,
    anon_vma: int,
    file: int,
    pgoff: int,
    uffd: int,
) -> int:
    return 0
