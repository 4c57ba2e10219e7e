# SPDX-License-Identifier: MIT
"""A kernel that never splits a VMA: munmap and mprotect take all of it."""

from spfemu.kernel import kernel


@kernel
def __split_vma(cpu: int, mm: int, vma: int, addr: int, new_below: int) -> int:
    return 0
