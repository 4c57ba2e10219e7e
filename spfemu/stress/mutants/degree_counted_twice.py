# SPDX-License-Identifier: MIT
"""A VMA that gets an anon_vma counts twice in its degree.

Linux 6.0, "mm/rmap: Fix anon_vma->degree ambiguity leading to double-reuse": whether an anon_vma
may be used again goes by this count.

Forks by the youngest of a line of processes make ever longer chains of anon_vmas.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import ANON_VMA
from spfemu.primitives import load, store

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "one_by_one"


@around
def anon_vma_set(vma: int, anon_vma: int) -> None:
    """Set it, and count again."""
    proceed(vma, anon_vma)
    store(anon_vma + ANON_VMA.degree, load(anon_vma + ANON_VMA.degree) + 1)
