# SPDX-License-Identifier: MIT
"""A page fault counts its page twice.

A slip of a counter; they are what the OOM killer goes by.

The process seems to have more memory than it has.
"""

from spfemu.kernel import around, proceed

PROTOCOL = "spf"
PROMISE = "ACCOUNTING"
SCHEDULE = "two_writes_to_a_new_page"


@around
def inc_mm_counter_fast(cpu: int) -> None:
    """Count again."""
    proceed(cpu)
    proceed(cpu)
