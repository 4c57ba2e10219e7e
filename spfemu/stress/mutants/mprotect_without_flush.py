# SPDX-License-Identifier: MIT
"""mprotect changes the entries and does not flush.

Synthetic; a flush that is left out because "nothing was changed" has been a bug of several
architectures.

A write through an old translation succeeds after mprotect has taken the right and returned.
"""

from spfemu.kernel import around, proceed

PROTOCOL = "classic"
PROMISE = "TLB"
SCHEDULE = "stale_translations"


@around
def change_pte_range(
    cpu: int, pmd: int, start: int, end: int, prot: int, writable: int, cp_flags: int
) -> int:
    """Say that nothing was changed."""
    return proceed(cpu, pmd, start, end, prot, writable, cp_flags) & 0
