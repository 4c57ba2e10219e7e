# SPDX-License-Identifier: MIT
"""A file that is cut keeps the pages behind its end in the cache.

Synthetic: truncate_inode_pages left out of a file system's setattr.

When the file grows again its old contents are back, where there must be zeros.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "a_file_is_mapped_and_cut"


@kernel
def truncate_inode_pages(cpu: int, mapping: int, first: int, last: int) -> None:
    """Leave them."""
