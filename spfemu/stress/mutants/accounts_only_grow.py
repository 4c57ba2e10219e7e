# SPDX-License-Identifier: MIT
"""What is unmapped stays in the accounts of the mm.

A slip of mm->total_vm; mmap and mremap of Linux have had several.

The process meets RLIMIT_AS and RLIMIT_DATA with an empty address space.
"""

from spfemu.kernel import around, proceed

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "one_by_one"


@around
def vm_stat_account(mm: int, vm_flags: int, pages: int) -> None:
    """Count what is added."""
    if pages > 0:
        proceed(mm, vm_flags, pages)
