# SPDX-License-Identifier: MIT
"""A page that leaves the page cache is not counted off its file.

"BUG: Bad page cache" and its like: nrpages and what is in the tree have differed over huge pages
and over shadows of evicted ones.

A file without pages is written back and walked for ever, and its inode cannot be freed.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import ADDRESS_SPACE
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.primitives import load, store

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "a_file_is_mapped_and_cut"


@around
def delete_from_page_cache(cpu: int, mapping: int, page: int) -> None:
    """Count it back."""
    proceed(cpu, mapping, page)
    spin_lock(cpu, mapping + ADDRESS_SPACE.xa_lock)
    store(mapping + ADDRESS_SPACE.nrpages, load(mapping + ADDRESS_SPACE.nrpages) + 1)
    spin_unlock(mapping + ADDRESS_SPACE.xa_lock)
