# SPDX-License-Identifier: MIT
"""mprotect makes pages writable that userfaultfd has protected.

Since Linux 5.19 mprotect spares pages a fault (can_change_pte_writable), but not these.

A page is written to, and the monitor hears of nothing.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.flags import Pte

PROTOCOL = "classic"
PROMISE = "OUTCOME"


@around
def can_change_pte_writable(cpu: int, entry: int) -> int:
    """Do not see the mark."""
    writable: int = proceed(cpu, entry & ~Pte.UFFD_WP)
    return writable
