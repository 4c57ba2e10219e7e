# SPDX-License-Identifier: MIT
"""An unmapped VMA gives back its file before the grace period.

M05: xfstests generic/619 failed because files were still in use after munmap, as they are here;
this is the mending that asks nobody.

A speculative fault, which has a copy of the VMA, looks into the page cache of a file that is gone.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import VMA
from spfemu.mm.file_table import fput
from spfemu.primitives import load, store

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "read_of_a_file_beside_munmap"
ID = "M05"


@around
def vm_area_free(cpu: int, vma: int) -> None:
    """Give it back now."""
    file = load(vma + VMA.vm_file)
    if file != 0:
        store(vma + VMA.vm_file, 0)
        fput(cpu, file)
    proceed(cpu, vma)
