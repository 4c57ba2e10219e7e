# SPDX-License-Identifier: MIT
"""An anon_vma is published by a plain store.

M27: Jann Horn's series of July 2023 on the memory ordering of anon_vma.

Another thread's page names an anon_vma that is not yet seen set up, and who walks from the page
to its ptes takes a lock that is none.
"""

from spfemu.kernel import kernel
from spfemu.layout import ANON_VMA, VMA
from spfemu.primitives import load, store, write_once

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "reclaim_by_an_anon_vma_that_is_set_up_late"
ID = "M27"
WEAK_MEMORY = True


@kernel
def anon_vma_set(vma: int, anon_vma: int) -> None:
    """Store the pointer, with nothing before it."""
    store(anon_vma + ANON_VMA.degree, load(anon_vma + ANON_VMA.degree) + 1)
    write_once(vma + VMA.anon_vma, anon_vma)
