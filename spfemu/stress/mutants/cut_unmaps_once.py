# SPDX-License-Identifier: MIT
"""A cut of a file unmaps what is gone once, not again after the pages have left the cache.

truncate_pagecache says why it is done twice: a private copy may be made in between.

A private copy of a page beyond the end stays mapped.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_MASK
from spfemu.mm.filemap import page_cache_size
from spfemu.mm.truncate import truncate_inode_pages, truncate_partial_page, unmap_mapping_range
from spfemu.mm.xarray import XA_MAX_INDEX

PROTOCOL = "classic"
PROMISE = "OUTCOME"
SCHEDULE = "private_copy_beside_a_cut"


@kernel
def truncate_pagecache(cpu: int, mapping: int, size: int) -> None:
    """Unmap once."""
    first = page_cache_size(mapping)
    unmap_mapping_range(cpu, mapping, first, XA_MAX_INDEX, 1)
    truncate_inode_pages(cpu, mapping, first, XA_MAX_INDEX)
    if size & ~PAGE_MASK:
        truncate_partial_page(cpu, mapping, size)
