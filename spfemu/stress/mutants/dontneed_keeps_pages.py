# SPDX-License-Identifier: MIT
"""MADV_DONTNEED leaves some pages where they are.

Synthetic: an early end of the walk.

A program reads old data where it has asked for zeros.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import PAGE_SIZE

PROTOCOL = "classic"
PROMISE = "OUTCOME"
SCHEDULE = "drop_and_read"


@around
def zap_page_range(cpu: int, vma: int, start: int, end: int) -> None:
    """Stop one page early."""
    proceed(cpu, vma, start, end - PAGE_SIZE)
