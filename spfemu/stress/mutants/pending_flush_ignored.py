# SPDX-License-Identifier: MIT
"""A copy on write does not flush what others have protected and are about to flush.

6ce64428d620 (Linux 5.12): userfaultfd protects pages under the mmap lock for reading.

A page is copied while another thread writes to it through its TLB; what it writes is lost.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "copy_beside_write_protection"


@kernel
def flush_tlb_pending(cpu: int) -> None:
    """Leave it to them."""
