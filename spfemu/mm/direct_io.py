# SPDX-License-Identifier: MIT
"""Direct I/O to user memory: a device writes to pinned frames (block/bio.c, Linux 5.12).

One I/O per CPU at a time.  The device is the CPU itself, which stores to the frames past the page
tables, as DMA does.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, GUP_PAGES, WORD
from spfemu.mm.filemap import set_page_dirty
from spfemu.mm.flags import Errno, Foll
from spfemu.mm.gup import pin_user_pages_fast, unpin_user_page
from spfemu.mm.page_alloc import page_address
from spfemu.primitives import load, store, write_once


@kernel
def bio_map_user(cpu: int, address: int, nr_pages: int) -> int:
    """Pin the frames of a buffer for writing (bio_iov_iter_get_pages).

    Returns how many, GUP_PAGES at most, or a negative errno.
    """
    if nr_pages > GUP_PAGES or load(cpu + CPU.gup_nr) != 0:
        return -Errno.EINVAL
    nr_pages = pin_user_pages_fast(cpu, address, nr_pages, Foll.WRITE, cpu + CPU.gup_pages)
    if nr_pages > 0:
        store(cpu + CPU.gup_nr, nr_pages)
    return nr_pages


@kernel
def dma_write(cpu: int, index: int, value: int) -> None:
    """Store a word at the begin of one of the frames."""
    write_once(page_address(cpu, load(cpu + CPU.gup_pages + index * WORD)), value)


@kernel
def bio_release_pages(cpu: int) -> None:
    """End the I/O: its frames were written to behind the page tables' back; unpin them.

    Without the dirty bit, a file would lose what the device wrote, and so would memory that
    MADV_FREE gave up before (bio_set_pages_dirty).
    """
    for i in range(load(cpu + CPU.gup_nr)):
        page = load(cpu + CPU.gup_pages + i * WORD)
        set_page_dirty(page)
        unpin_user_page(cpu, page)
        store(cpu + CPU.gup_pages + i * WORD, 0)
    store(cpu + CPU.gup_nr, 0)
