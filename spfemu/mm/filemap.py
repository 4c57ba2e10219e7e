# SPDX-License-Identifier: MIT
"""The page cache: what of a file is in memory (Linux 5.12, mm/filemap.c).

There is no disk.  What has never been written reads as zeros, as in a hole of a sparse file, and a
page stays in the cache until the file is cut or gone; reading it in takes the time of clearing it.
A page in the cache has a reference of the cache's, its mapping and index, and is locked while it is
being read.  It leaves the cache under its lock; the cache's reference goes a grace period later.
The kernel drops that at once and lets lookups try for a reference; here, whoever looks a page up
within a read-side section may take one without looking back.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, PAGE, PAGE_SHIFT, PAGE_SIZE, VMA, VMF
from spfemu.mm.flags import FileOps, PageKind, Pg, Vm, VmFault
from spfemu.mm.i_mmap import vma_mapping
from spfemu.mm.page_alloc import alloc_page, get_page, page_address, put_page
from spfemu.mm.page_lock import (
    lock_page,
    lock_page_or_retry,
    trylock_page,
    unlock_page,
    wait_on_page_locked,
)
from spfemu.mm.rcu import call_rcu, rcu_read_lock, rcu_read_unlock
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.mm.xarray import XA_MAX_INDEX, xa_create, xa_find, xa_load, xa_walk
from spfemu.primitives import (
    atomic_fetch_or,
    clear_page,
    load,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    store,
    write_once,
)

if TYPE_CHECKING:  # the engines resolve calls by name: importing this would be circular
    from spfemu.mm.memory import vmf_no_page

READ_AROUND_PAGES = 32
"""Pages that a fault reads around its own (VM_READAHEAD_PAGES: 128 KiB)."""
NEW_PAGE = int(Pg.LOCKED) | PageKind.FILE
S_MAXBYTES = (XA_MAX_INDEX + 1) << PAGE_SHIFT
"""Longest file that the cache can hold [bytes]."""


@kernel
def page_cache_size(mapping: int) -> int:
    """Return how many pages the file has."""
    return (read_once(mapping + ADDRESS_SPACE.i_size) + PAGE_SIZE - 1) >> PAGE_SHIFT


@kernel
def find_get_page(cpu: int, mapping: int, index: int) -> int:
    """Return the page at `index` with a reference for the caller, or 0."""
    rcu_read_lock(cpu)
    page = xa_load(cpu, mapping, index)
    if page != 0:
        get_page(page)
    rcu_read_unlock(cpu)
    return page


@slowpath
def get_cached_page_from(cpu: int, mapping: int, index: int) -> tuple[int, int]:
    """Return (index, page) of the first page from `index` on, with a reference, or (-1, 0)."""
    rcu_read_lock(cpu)
    index, page = xa_find(cpu, mapping, index)
    if page != 0:
        get_page(page)
    rcu_read_unlock(cpu)
    return index, page


@slowpath
def add_to_page_cache(cpu: int, mapping: int, index: int) -> tuple[int, int]:
    """Put a new page, locked and not read yet, into the cache unless there is one.

    Returns (it, with a reference for the caller, 1); (the one that is there, with one, 0); or
    (0, 0) if out of memory.
    """
    page = find_get_page(cpu, mapping, index)
    if page != 0:
        return page, 0
    page = alloc_page(cpu, PageKind.FILE)
    if page == 0:
        return 0, 0
    swapbacked = load(mapping + ADDRESS_SPACE.i_fop) == FileOps.SHMEM
    store(page + PAGE.flags, NEW_PAGE | Pg.SWAPBACKED if swapbacked else NEW_PAGE)
    store(page + PAGE.mapcount, 0)
    store(page + PAGE.mapping, mapping)
    store(page + PAGE.index, index)
    store(page + PAGE.refcount, 2)
    spin_lock(cpu, mapping + ADDRESS_SPACE.xa_lock)
    slot = xa_create(cpu, mapping, index)
    found = load(slot) if slot != 0 else 0
    if slot != 0 and found == 0:
        # pairs with the dependent use of the page by lookups without the lock
        smp_store_release(slot, page)
        store(mapping + ADDRESS_SPACE.nrpages, load(mapping + ADDRESS_SPACE.nrpages) + 1)
    elif found != 0:
        get_page(found)
    spin_unlock(mapping + ADDRESS_SPACE.xa_lock)
    if slot != 0 and found == 0:
        count_vm_event(cpu, Event.PAGES_ADDED)
        # the page is in the cache before the caller looks at the length of the file again; pairs
        # with the fence in truncate_setsize: a page beyond the end is seen by the one or the other
        smp_mb()
        return page, 1
    store(page + PAGE.refcount, 1)
    put_page(cpu, page)
    return found, 0


@kernel
def read_page(cpu: int, page: int) -> None:
    """Read a locked new page from the file: zeros (readpage of a hole)."""
    clear_page(page_address(cpu, page))
    # full order: who sees the bit sees the contents
    atomic_fetch_or(page + PAGE.flags, Pg.UPTODATE)


@kernel
def wait_on_page_uptodate(cpu: int, page: int) -> None:
    """Wait until a page that was found in the cache has been read; the caller has a reference.

    Whoever puts a page into the cache has it locked until then.  The acquire pairs with the update
    in `read_page`.
    """
    while (smp_load_acquire(page + PAGE.flags) & Pg.UPTODATE) == 0:
        wait_on_page_locked(cpu, page)


@slowpath
def page_cache_ra(cpu: int, mapping: int, first: int, end: int) -> None:
    """Read the pages [first, end) that are not in the cache, as far as there is memory."""
    for index in range(first, end):
        page, created = add_to_page_cache(cpu, mapping, index)
        if page == 0:
            return
        if created:
            read_page(cpu, page)
            unlock_page(page)
        put_page(cpu, page)


@slowpath
def do_sync_mmap_readahead(cpu: int, vmf: int, mapping: int) -> None:
    """Read around a page that a fault needs, unless the mapping is advised to be read at random.

    Shared memory has nothing to read.
    """
    count_vm_event(cpu, Event.PGMAJFAULT)
    if load(load(vmf + VMF.vma) + VMA.vm_flags) & Vm.RAND_READ:
        return
    first = load(vmf + VMF.pgoff) - READ_AROUND_PAGES // 2
    first = first if first > 0 else 0
    end = first + READ_AROUND_PAGES
    size = page_cache_size(mapping)
    page_cache_ra(cpu, mapping, first, end if end < size else size)


@kernel
def delete_from_page_cache(cpu: int, mapping: int, page: int) -> None:
    """Take a locked page that nobody maps out of the cache; the caller has a reference to it.

    That of the cache goes a grace period later.
    """
    spin_lock(cpu, mapping + ADDRESS_SPACE.xa_lock)
    write_once(xa_walk(cpu, mapping, load(page + PAGE.index)), 0)
    write_once(page + PAGE.mapping, 0)
    store(mapping + ADDRESS_SPACE.nrpages, load(mapping + ADDRESS_SPACE.nrpages) - 1)
    spin_unlock(mapping + ADDRESS_SPACE.xa_lock)
    count_vm_event(cpu, Event.PAGES_TRUNCATED)
    call_rcu(cpu, page)


# Faults


@kernel
def filemap_fault(cpu: int, vmf: int) -> int:
    """Find or read the page of the file for a fault: VMF.page, locked, with a reference.

    Returns VM_FAULT_* bits, LOCKED if it is there.  Serves shared memory too (shmem_fault).
    """
    mapping = vma_mapping(load(vmf + VMF.vma))
    index = load(vmf + VMF.pgoff)
    while True:
        if index >= page_cache_size(mapping):
            return VmFault.SIGBUS
        page = find_get_page(cpu, mapping, index)
        created = 0
        if page == 0:
            if load(mapping + ADDRESS_SPACE.i_fop) == FileOps.GENERIC:
                do_sync_mmap_readahead(cpu, vmf, mapping)
            page, created = add_to_page_cache(cpu, mapping, index)
            if page == 0:
                return vmf_no_page(cpu, vmf)
        if created:
            read_page(cpu, page)
        elif lock_page_or_retry(cpu, vmf, page) == 0:
            put_page(cpu, page)
            return VmFault.RETRY
        if filemap_page_ok(cpu, mapping, page):
            store(vmf + VMF.page, page)
            return VmFault.LOCKED
        unlock_page(page)
        put_page(cpu, page)


@kernel
def filemap_page_ok(cpu: int, mapping: int, page: int) -> int:
    """Tell whether a locked page is still one of the file; one beyond its end is dropped.

    Under the lock the answer stays right until the page is mapped: truncation changes the length
    first, then locks each page.
    """
    if read_once(page + PAGE.mapping) != mapping:
        return 0
    if load(page + PAGE.index) < page_cache_size(mapping):
        return 1
    delete_from_page_cache(cpu, mapping, page)
    return 0


@kernel
def filemap_fault_speculative(cpu: int, vmf: int) -> int:
    """Find the page of the file if that needs no waiting and no I/O; else VM_FAULT_RETRY, counted.

    Within rcu_read_lock, and the VMA still was that of the file (RFC of the patch set).
    """
    mapping = vma_mapping(load(vmf + VMF.vma))
    index = load(vmf + VMF.pgoff)
    page = xa_load(cpu, mapping, index)
    if page == 0:
        count_vm_event(cpu, Event.SPF_ABORT_PAGE_CACHE)
        return VmFault.RETRY
    get_page(page)
    if trylock_page(page) == 0:
        put_page(cpu, page)
        count_vm_event(cpu, Event.SPF_ABORT_PAGE_LOCK)
        return VmFault.RETRY
    if read_once(page + PAGE.mapping) == mapping and index < page_cache_size(mapping):
        store(vmf + VMF.page, page)
        return VmFault.LOCKED
    unlock_page(page)
    put_page(cpu, page)
    count_vm_event(cpu, Event.SPF_ABORT_PAGE_CACHE)
    return VmFault.RETRY


@kernel
def next_uptodate_page(cpu: int, mapping: int, index: int, end: int) -> tuple[int, int]:
    """Return (page, its index) of the first page in [index, end) that can be mapped at once.

    It is locked and has a reference for the caller; (0, end) if there is none.
    """
    size = page_cache_size(mapping)
    while index < end and index < size:
        page = find_get_page(cpu, mapping, index)
        if page != 0:
            if trylock_page(page):
                if read_once(page + PAGE.mapping) == mapping and index < page_cache_size(mapping):
                    return page, index
                unlock_page(page)
            put_page(cpu, page)
        index += 1
    return 0, end


@kernel
def set_page_dirty(page: int) -> None:
    """Say that the page differs from what is on disk."""
    atomic_fetch_or(page + PAGE.flags, Pg.DIRTY)


@kernel
def filemap_page_mkwrite(cpu: int, vmf: int) -> int:
    """Lock VMF.page before a shared mapping may write to it, and make it dirty.

    Returns VM_FAULT_LOCKED, or NOPAGE if it is no page of the file any more.  May sleep, which is
    why no speculative fault comes here.
    """
    page = load(vmf + VMF.page)
    lock_page(cpu, page)
    if read_once(page + PAGE.mapping) != vma_mapping(load(vmf + VMF.vma)):
        unlock_page(page)
        count_vm_event(cpu, Event.FILE_NOPAGE)
        return VmFault.NOPAGE
    set_page_dirty(page)
    return VmFault.LOCKED


# Reads and writes by system calls.


@slowpath
def grab_cache_page(cpu: int, mapping: int, index: int) -> int:
    """Return the page at `index`, locked, read and with a reference, or 0 if out of memory."""
    while True:
        page, created = add_to_page_cache(cpu, mapping, index)
        if page == 0:
            return 0
        if created:
            read_page(cpu, page)
            return page
        lock_page(cpu, page)
        if read_once(page + PAGE.mapping) == mapping:
            return page
        unlock_page(page)
        put_page(cpu, page)
