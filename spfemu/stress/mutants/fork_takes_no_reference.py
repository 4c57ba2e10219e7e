# SPDX-License-Identifier: MIT
"""A fork maps pages for the child without taking references.

A slip of a reference count.

The first of the two that unmaps frees the page under the other.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE
from spfemu.primitives import atomic_fetch_add_relaxed

PROTOCOL = "classic"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "write_after_a_fork"


@kernel
def page_dup_rmap(page: int) -> None:
    """Count the mapping and give the reference back that was just taken."""
    atomic_fetch_add_relaxed(page + PAGE.mapcount, 1)
    atomic_fetch_add_relaxed(page + PAGE.refcount, -1)
