# SPDX-License-Identifier: MIT
"""A fault gives its VMA an anon_vma without looking whether another one has.

M27 and its family: the anon_vma is set under the mmap lock for reading. Jann Horn, "Fix anon_vma
memory ordering", 2023.

Pages point to an anon_vma that their VMA has forgotten: reclaim cannot find who maps them.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.mm.flags import Errno
from spfemu.mm.rmap import anon_vma_alloc, anon_vma_chain_link, anon_vma_set

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "two_writes_to_a_new_page"
ID = "M27"


@kernel
def __anon_vma_prepare(cpu: int, vma: int) -> int:
    """Make one and set it."""
    anon_vma = anon_vma_alloc(cpu)
    if anon_vma == 0:
        return -Errno.ENOMEM
    anon_vma_chain_link(vma, vma + VMA.avc, anon_vma)
    anon_vma_set(vma, anon_vma)
    return 0
