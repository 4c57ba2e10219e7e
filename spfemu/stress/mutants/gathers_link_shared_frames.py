# SPDX-License-Identifier: MIT
"""Unmappings collect frames by the link in the frame, whoever else may collect them too.

A bug of this emulator while it was written; mmu_gather has arrays of pointers for that reason.

Two processes that unmap one page tie their lists together, and free frames that are in use.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, GATHER, PAGE
from spfemu.primitives import load, store

PROTOCOL = "spf"
PROMISE = "ACCOUNTING"
SCHEDULE = "two_processes_unmap_shared_frames"


@kernel
def tlb_remove_page(cpu: int, page: int) -> int:
    """Link them all."""
    gather = cpu + CPU.gather
    store(gather + GATHER.nr_pages, load(gather + GATHER.nr_pages) + 1)
    store(page + PAGE.lru, load(gather + GATHER.pages))
    store(gather + GATHER.pages, page)
    return 0
