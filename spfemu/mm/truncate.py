# SPDX-License-Identifier: MIT
"""Taking pages away from a file (Linux 5.12, mm/truncate.c, mm/memory.c: unmap_mapping_range).

First the length changes, then everything beyond is unmapped wherever it is mapped, then each page
leaves the cache, under its lock, unmapped once more if a fault has mapped it meanwhile.  A later
touch is a SIGBUS.  No mmap lock is held: the list of the file's mappings leads to the page tables,
which stay as long as a VMA is on it.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, PAGE, PAGE_MASK, PAGE_SHIFT, VMA, WORD
from spfemu.mm.filemap import (
    delete_from_page_cache,
    find_get_page,
    get_cached_page_from,
    page_cache_size,
    set_page_dirty,
)
from spfemu.mm.page_alloc import page_address, put_page
from spfemu.mm.page_lock import lock_page, unlock_page
from spfemu.mm.rwsem import down_read, down_write, up_read, up_write
from spfemu.mm.xarray import XA_MAX_INDEX
from spfemu.mm.zap import zap_page_range_single
from spfemu.primitives import load, read_once, smp_mb, write_once

WORD_SHIFT = 3


@slowpath
def unmap_mapping_range(cpu: int, mapping: int, first: int, last: int, even_cows: int) -> None:
    """Unmap the pages [first, last] of a file in all processes; private copies if `even_cows`."""
    down_read(cpu, mapping + ADDRESS_SPACE.i_mmap_rwsem)
    vma = load(mapping + ADDRESS_SPACE.i_mmap)
    while vma != 0:
        pgoff = load(vma + VMA.vm_pgoff)
        start = load(vma + VMA.vm_start)
        skip = first - pgoff if first > pgoff else 0
        count = last + 1 - pgoff
        pages = (load(vma + VMA.vm_end) - start) >> PAGE_SHIFT
        count = count if count < pages else pages
        if skip < count:
            end = start + (count << PAGE_SHIFT)
            zap_page_range_single(cpu, vma, start + (skip << PAGE_SHIFT), end, even_cows == 0)
        vma = load(vma + VMA.shared_next)
    up_read(cpu, mapping + ADDRESS_SPACE.i_mmap_rwsem)


@slowpath
def truncate_inode_pages(cpu: int, mapping: int, first: int, last: int) -> None:
    """Take the pages [first, last] out of the cache."""
    index, page = get_cached_page_from(cpu, mapping, first)
    while page != 0 and index <= last:
        lock_page(cpu, page)
        if read_once(page + PAGE.mapping) == mapping:
            if read_once(page + PAGE.mapcount) != 0:
                unmap_mapping_range(cpu, mapping, index, index, 0)
            delete_from_page_cache(cpu, mapping, page)
        unlock_page(page)
        put_page(cpu, page)
        index, page = get_cached_page_from(cpu, mapping, index + 1)
    if page != 0:
        put_page(cpu, page)


@kernel
def truncate_setsize(cpu: int, mapping: int, size: int) -> None:
    """Set the length of the file and drop what lies beyond; i_rwsem is held for writing.

    The fence pairs with that in `add_to_page_cache`: who adds a page either sees the new length or
    is seen by the search for pages.
    """
    old = load(mapping + ADDRESS_SPACE.i_size)
    write_once(mapping + ADDRESS_SPACE.i_size, size)
    smp_mb()
    if size < old:
        truncate_pagecache(cpu, mapping, size)


@slowpath
def truncate_pagecache(cpu: int, mapping: int, size: int) -> None:
    """Unmap and drop the pages from the end of the file on; clear the rest of its last page.

    Private copies go too, and twice: one may have been made while pages were dropped.
    """
    first = page_cache_size(mapping)
    unmap_mapping_range(cpu, mapping, first, XA_MAX_INDEX, 1)
    truncate_inode_pages(cpu, mapping, first, XA_MAX_INDEX)
    unmap_mapping_range(cpu, mapping, first, XA_MAX_INDEX, 1)
    if size & ~PAGE_MASK:
        truncate_partial_page(cpu, mapping, size)


@kernel
def truncate_partial_page(cpu: int, mapping: int, size: int) -> None:
    """Clear the last page of the file from its end on: a file that grows again reads as zeros."""
    page = find_get_page(cpu, mapping, size >> PAGE_SHIFT)
    if page == 0:
        return
    lock_page(cpu, page)
    if read_once(page + PAGE.mapping) == mapping:
        address = page_address(cpu, page)
        offset = size & ~PAGE_MASK
        word = address + (offset & -WORD)
        kept = offset & (WORD - 1)
        if kept:
            write_once(word, read_once(word) & ((1 << (kept << WORD_SHIFT)) - 1))
            word += WORD
        while word & ~PAGE_MASK:
            write_once(word, 0)
            word += WORD
        set_page_dirty(page)
    unlock_page(page)
    put_page(cpu, page)


@slowpath
def punch_hole(cpu: int, mapping: int, first: int, last: int) -> None:
    """Make the pages [first, last] of a file a hole; private copies stay (fallocate)."""
    down_write(cpu, mapping + ADDRESS_SPACE.i_rwsem)
    unmap_mapping_range(cpu, mapping, first, last, 0)
    truncate_inode_pages(cpu, mapping, first, last)
    up_write(cpu, mapping + ADDRESS_SPACE.i_rwsem)
