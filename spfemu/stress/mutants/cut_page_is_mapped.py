# SPDX-License-Identifier: MIT
"""A fault does not look whether the page that it has locked is still one of the file.

Synthetic: filemap_fault compares the mapping under the page lock.

A page is mapped that has been cut off.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "fault_beside_a_cut"


@kernel
def filemap_page_ok(cpu: int, mapping: int, page: int) -> int:
    """Take it for granted."""
    return 1
