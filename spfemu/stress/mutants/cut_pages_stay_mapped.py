# SPDX-License-Identifier: MIT
"""What is cut off a file stays mapped.

Synthetic: truncate_pagecache does nothing.

A program goes on with pages that are no longer the file's, and gets no SIGBUS.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "OUTCOME"
SCHEDULE = "read_beyond_a_cut"


@kernel
def truncate_pagecache(cpu: int, mapping: int, size: int) -> None:
    """Leave it."""
