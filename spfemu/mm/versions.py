# SPDX-License-Identifier: MIT
"""Kernel versions after 5.12 in which programs began to see something else.

Each is to be compared with CONFIG_LINUX_VERSION.  What only concerns the kernel itself (the maple
tree, per-VMA locks) is none of them: the emulated kernel is 5.12 there, or the protocol's choice.
"""

MPROTECT_MAKES_WRITABLE = 0x600
"""mprotect makes entries of pages that nobody else maps writable at once, so that the write does
not fault (64fe24a3e05e)."""

BRK_NEEDS_A_MAPPING = 0x601
"""brk does not shrink the heap over a range in which nothing is mapped any more
(2e7ce7d354f2)."""

STACKS_HAVE_NO_HUGE_PAGES = 0x607
"""MAP_STACK sets VM_NOHUGEPAGE (c4608d1bf7c6)."""

MPROTECT_DROPS_ACCOUNT = 0x607
"""mprotect takes VM_ACCOUNT away with the right to write as long as there is no anon_vma, so the
VMA can be merged with one that never could be written (mm/mprotect.c: "unaccounted")."""

MMAP_ALIGNS_TO_PMD = 0x60D
"""mmap without a hint aligns mappings of whole huge pages to one.  Came with 6.7 for all lengths
of a huge page or more (efa7df3e3bb5), has this form since 6.12 (d4148aeab412) and 6.13
(249608ee4713)."""

ANON_VMA_EITHER_WAY = 0x610
"""A VMA without anon_vma takes in a range that has one, not only the other way round
(879bca0a2c4f)."""
