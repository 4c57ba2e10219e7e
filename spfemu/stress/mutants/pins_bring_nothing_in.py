# SPDX-License-Identifier: MIT
"""A page that is not there cannot be pinned.

Synthetic: the slow way of get_user_pages gives up where it should let a fault happen.

Direct I/O into memory that has not been touched yet fails.
"""

from spfemu.kernel import kernel
from spfemu.mm.flags import Errno

PROTOCOL = "classic"
PROMISE = "OUTCOME"
SCHEDULE = "pin_of_an_untouched_page"


@kernel
def faultin_page(cpu: int, mm: int, vma: int, address: int, flags: int) -> int:
    """Give up."""
    return -Errno.EFAULT
