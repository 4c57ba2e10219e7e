# SPDX-License-Identifier: MIT
"""A VMA that maps a file takes two references to it.

A reference too many: error paths of mmap_region, again and again.

The file is never closed, nor its pages freed.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.file_table import get_file

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "a_file_is_mapped_and_cut"


@around
def vma_set_file(vma: int, file: int) -> None:
    """Take one more."""
    proceed(vma, file)
    if file != 0:
        get_file(file)
