# SPDX-License-Identifier: MIT
"""Faults on pages that are in the swap area (Linux 6.1, mm/memory.c: do_swap_page).

Found in the swap cache or read into it, the page is locked, and mapped if the pte still holds its
entry.  A page that nobody else has is made writable at once if that is what the fault wants;
another one goes on to copy-on-write.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import ANON_VMA, MM, PAGE, VMA, VMF
from spfemu.mm.flags import Errno, FaultFlag, PageKind, Pg, Pte, Vm, VmFault
from spfemu.mm.memory import (
    WRITABLE,
    do_wp_page,
    linear_page_index,
    pte_map_lock_nonspec,
    put_new_page,
    vmf_no_page,
)
from spfemu.mm.page_alloc import alloc_page, page_address, put_page
from spfemu.mm.page_lock import lock_page_or_retry, trylock_page, unlock_page
from spfemu.mm.pgtable import set_pte
from spfemu.mm.rss import inc_mm_counter_fast
from spfemu.mm.spinlock import spin_unlock
from spfemu.mm.swap_state import (
    lookup_swap_cache,
    page_swapcache,
    swap_cache_add,
    swap_readpage,
    try_to_free_swap,
    unlock_swap_page,
)
from spfemu.mm.swapfile import swap_free, vm_swap_full
from spfemu.mm.swapops import pte_to_swp_entry
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add_relaxed,
    load,
    read_once,
    smp_load_acquire,
    store,
)

ANON_LOCKED = int(PageKind.ANON) | int(Pg.LOCKED)


@kernel
def swap_fault_allowed(cpu: int, vmf: int) -> int:
    """Tell whether the fault may handle a swapped page: a speculative one may not (SPF v2)."""
    if load(vmf + VMF.flags) & FaultFlag.SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ABORT_SWAP)
        return 0
    return 1


@slowpath
def do_swap_page(cpu: int, vmf: int) -> int:
    """Bring back the page whose entry the walk read; returns VM_FAULT_* bits."""
    if swap_fault_allowed(cpu, vmf) == 0:
        return VmFault.RETRY
    entry = pte_to_swp_entry(load(vmf + VMF.orig_pte))
    page = swapin_page(cpu, entry)
    if page < 0:
        return vmf_no_page(cpu, vmf)
    if page == 0:
        # the entry is gone from the pte, too
        return 0
    if lock_page_or_retry(cpu, vmf, page) == 0:
        put_page(cpu, page)
        return VmFault.RETRY
    if page_swapcache(page) == 0 or load(page + PAGE.private) != entry:
        return swap_fault_lost(cpu, page)
    pte_map_lock_nonspec(cpu, vmf)
    if read_once(load(vmf + VMF.pte)) != load(vmf + VMF.orig_pte):
        spin_unlock(load(vmf + VMF.ptl))
        return swap_fault_lost(cpu, page)
    return map_swap_page(cpu, vmf, page, entry)


@kernel
def swap_fault_lost(cpu: int, page: int) -> int:
    """Let go of a page that is not wanted any more; the access will be tried again.  Returns 0."""
    unlock_swap_page(cpu, page)
    put_page(cpu, page)
    count_vm_event(cpu, Event.PTE_CHANGED)
    return 0


@kernel
def swapin_page(cpu: int, entry: int) -> int:
    """Return the page of `entry` from the cache, with a reference, read if need be.

    0: no pte holds the entry any more, or another page was there for a moment; -ENOMEM.
    """
    page = lookup_swap_cache(cpu, entry)
    if page != 0:
        count_vm_event(cpu, Event.SWAP_CACHE_HIT)
        return page
    page = read_swap_cache(cpu, entry)
    if page > 0:
        count_vm_event(cpu, Event.PGMAJFAULT)
    return page


@slowpath
def read_swap_cache(cpu: int, entry: int) -> int:
    """Read `entry` into a fresh page in the cache; results as of `swapin_page`.

    The page is locked until it has been read.  Source: read_swap_cache_async.
    """
    page = alloc_page(cpu, ANON_LOCKED)
    if page == 0:
        return -Errno.ENOMEM
    store(page + PAGE.mapping, 0)
    store(page + PAGE.mapcount, 0)
    if swap_cache_add(cpu, entry, page) != 0:
        put_new_page(cpu, page)
        return lookup_swap_cache(cpu, entry)
    swap_readpage(cpu, page)
    count_vm_event(cpu, Event.PSWPIN)
    unlock_swap_page(cpu, page)
    return page


@kernel
def map_swap_page(cpu: int, vmf: int, page: int, entry: int) -> int:
    """Map a locked page in place of its entry; the page-table lock is held.  VM_FAULT_* bits.

    The reference of the caller becomes that of the pte.
    """
    vma = load(vmf + VMF.vma)
    orig_pte = load(vmf + VMF.orig_pte)
    swap_free(cpu, entry)
    write = 1 if load(vmf + VMF.flags) & FaultFlag.WRITE else 0
    if should_try_to_free_swap(cpu, vma, page, entry, write):
        try_to_free_swap(cpu, page)
    # acquire pairs with the update in put_page: who shared the page has done with it
    exclusive = smp_load_acquire(page + PAGE.refcount) == 1
    pte = page_address(cpu, page) | load(vma + VMA.vm_page_prot) | Pte.ACCESSED
    pte = pte | (orig_pte & Pte.UFFD_WP)
    if exclusive and write and (orig_pte & Pte.UFFD_WP) == 0:
        pte = pte | WRITABLE
        write = 0
    inc_mm_counter_fast(cpu)
    atomic_fetch_add_relaxed(load(vma + VMA.vm_mm) + MM.swap_ents, -1)
    page_add_anon_rmap(page, vma, load(vmf + VMF.address), exclusive)
    set_pte(load(vmf + VMF.pte), pte)
    unlock_page(page)
    if write:
        store(vmf + VMF.orig_pte, pte)
        return do_wp_page(cpu, vmf)
    spin_unlock(load(vmf + VMF.ptl))
    return 0


@kernel
def should_try_to_free_swap(cpu: int, vma: int, page: int, entry: int, write: int) -> int:
    """Tell whether the page had better have no slot: slots are short, or the copy is soon old."""
    if load(vma + VMA.vm_flags) & Vm.LOCKED or vm_swap_full(cpu, entry):
        return 1
    return write and read_once(page + PAGE.refcount) == 2


@kernel
def page_add_anon_rmap(page: int, vma: int, address: int, exclusive: int) -> None:
    """Count a mapping of a locked page, and say where it is if nobody has; page-table lock held.

    One that relatives may map too is their common ancestor's.  Source: __page_set_anon_rmap.
    """
    atomic_fetch_add_relaxed(page + PAGE.mapcount, 1)
    if load(page + PAGE.mapping) == 0:
        anon_vma = load(vma + VMA.anon_vma)
        if exclusive == 0:
            anon_vma = load(anon_vma + ANON_VMA.root)
        store(page + PAGE.index, linear_page_index(vma, address))
        store(page + PAGE.mapping, anon_vma | 1)


@slowpath
def wp_free_swap(cpu: int, page: int) -> int:
    """Take a page that only one pte maps out of the swap cache before it is written to.

    Returns 1 if it is not there any more: else its copy in the slot would change.  The page-table
    lock is held, so the page lock is only tried for.  Source: do_wp_page.
    """
    if read_once(page + PAGE.refcount) == 2 and trylock_page(page):
        try_to_free_swap(cpu, page)
        unlock_page(page)
    return page_swapcache(page) == 0
