# SPDX-License-Identifier: MIT
"""madvise does not tell that there were holes in its range.

Synthetic: the error of a loop that its next round overwrites.

A program takes memory that it has not got for memory that it has given advice about.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.flags import Errno

PROTOCOL = "classic"
PROMISE = "OUTCOME"
SCHEDULE = "one_by_one"


@around
def do_madvise(cpu: int, mm: int, start: int, end: int, advice: int) -> int:
    """Forget them."""
    error = proceed(cpu, mm, start, end, advice)
    return 0 if error == -Errno.ENOMEM else error
