# SPDX-License-Identifier: MIT
"""A collapse copies pages to which others have references.

Synthetic: khugepaged compares page_count with the number of mappings.

A device goes on with the old frame, the process with the copy.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.khugepaged import Scan

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "collapse_of_a_pinned_page"


@around
def collapse_check_page(cpu: int, entry: int) -> int:
    """Overlook them."""
    result = proceed(cpu, entry)
    return Scan.SUCCEED if result == Scan.PAGE_COUNT else result
