# SPDX-License-Identifier: MIT
"""Grow a heap by a page and shrink it again: malloc that trims at once (will-it-scale).

As brk1, but a page of the heap stays, so that its VMA changes its size and does not come and go.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SIZE

EXTENDS = "brk1"


@kernel
def heap_kept(cpu: int) -> int:
    """Keep a page."""
    return PAGE_SIZE
