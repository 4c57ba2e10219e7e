# SPDX-License-Identifier: MIT
"""A kernel that takes an address that is not aligned for a bug of its own."""

from spfemu.kernel import kernel
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import PAGE_MASK


@kernel
def madvise_check(start: int, length: int, advice: int) -> int:
    vm_bug_on(start & ~PAGE_MASK, Bug.TABLE_MISSING)
    return 0
