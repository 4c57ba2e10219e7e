# SPDX-License-Identifier: MIT
"""A spinlock is released by a plain store.

What the release of a spinlock is for; x86 needs none, and the first arm kernels had to learn
it.

The next holder of a page-table lock finds an entry empty that has been filled: it maps another
page there, and one is lost.
"""

from spfemu.kernel import kernel
from spfemu.primitives import write_once

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "two_writes_of_which_one_is_late"
WEAK_MEMORY = True


@kernel
def spin_unlock(lock: int) -> None:
    """Clear the word, with nothing before it."""
    write_once(lock, 0)
