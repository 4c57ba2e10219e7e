# SPDX-License-Identifier: MIT
"""mprotect changes the VMA and leaves the entries of its pages as they are.

Synthetic: a range of which the walk believes that there is nothing below.

A page goes on being written after the right to do so has been taken away.
"""

from spfemu.kernel import around, proceed

PROTOCOL = "classic"
PROMISE = "OUTCOME"
SCHEDULE = "one_by_one"


@around
def change_protection(cpu: int, vma: int, start: int, end: int, cp_flags: int) -> int:
    """Change what others than mprotect ask for."""
    if cp_flags == 0:
        return 0
    return proceed(cpu, vma, start, end, cp_flags)
