# SPDX-License-Identifier: MIT
"""MADV_DONTNEED drops the page behind its range as well.

Synthetic: an end that is rounded up.

A program loses what it has written to a page that it never gave up.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import PAGE_SIZE, VMA
from spfemu.primitives import load

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "one_by_one"


@around
def zap_page_range(cpu: int, vma: int, start: int, end: int) -> None:
    """Stop one page late, if the VMA goes on there."""
    if end < load(vma + VMA.vm_end):
        end += PAGE_SIZE
    proceed(cpu, vma, start, end)
