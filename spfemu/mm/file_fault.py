# SPDX-License-Identifier: MIT
"""Faults in mappings of files (Linux 5.12, mm/memory.c: do_fault and what it calls).

A read maps the page of the cache, and those around it that are there.  A write to a private mapping
makes a copy.  A write to a shared one maps the page for writing, after the file was asked
(page_mkwrite) if it wants to know which of its pages are dirty.

The page is locked from where it was found until it is mapped, so truncation, which takes pages out
under their lock, either comes first and the fault sees that, or finds it mapped.

The same code serves speculative faults, as in the RFC of the patch set of April 2021.  They ask the
file within rcu_read_lock, after `speculation_holds` has said that the VMA still maps it: the
reference that a VMA has to its file is dropped through RCU.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import PAGE, PAGE_SHIFT, VMA, VMF, WORD
from spfemu.mm.filemap import (
    filemap_fault,
    filemap_fault_speculative,
    filemap_page_mkwrite,
    next_uptodate_page,
    set_page_dirty,
)
from spfemu.mm.flags import PMD_SIZE, VM_FAULT_ERROR, FaultFlag, FileOps, Vm, VmFault
from spfemu.mm.i_mmap import vma_mapping
from spfemu.mm.memory import (
    WRITABLE,
    linear_page_index,
    page_add_new_anon_rmap,
    put_new_page,
    vmf_alloc_page,
    vmf_anon_vma_prepare,
    vmf_no_page,
)
from spfemu.mm.page_alloc import get_page, page_address, put_page
from spfemu.mm.page_lock import lock_page, unlock_page
from spfemu.mm.pgtable import set_pte
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.rss import inc_mm_counter_fast, inc_mm_file_counter
from spfemu.mm.spinlock import spin_unlock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import atomic_fetch_add_relaxed, copy_page, load, read_once, store

if TYPE_CHECKING:  # defined by the protocol
    from spfemu.protocols.classic import pte_map_lock

FAULT_AROUND_BYTES = 65536
"""Range that a read fault maps if it is in the cache (fault_around_bytes)."""
SPECULATIVE = int(FaultFlag.SPECULATIVE)
NOT_MAPPED = int(VmFault.NOPAGE | VmFault.RETRY) | VM_FAULT_ERROR
"""The fault has not mapped the page that was found for it."""
RESULT = int(VmFault.RETRY) | VM_FAULT_ERROR
"""What of a result concerns those who took the fault."""


@kernel
def speculation_holds(cpu: int, vmf: int, reason: int) -> int:
    """Tell whether the VMA of a speculative fault is still what it was; counts `reason` if not.

    Protocols that speculate replace this; other faults keep the VMA by a lock.
    """
    return 1


@slowpath
def do_fault(cpu: int, vmf: int) -> int:
    """Fill an empty pte of a file's mapping; returns VM_FAULT_* bits."""
    vma = load(vmf + VMF.vma)
    flags = load(vmf + VMF.flags)
    if flags & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ATTEMPT_FILE)
    store(vmf + VMF.pgoff, linear_page_index(vma, load(vmf + VMF.address)))
    store(vmf + VMF.cow_page, 0)
    if (flags & FaultFlag.WRITE) == 0:
        result = do_read_fault(cpu, vmf)
    elif load(vma + VMA.vm_flags) & Vm.SHARED:
        result = do_shared_fault(cpu, vmf)
    else:
        result = do_cow_fault(cpu, vmf)
    return result & RESULT


@kernel
def do_read_fault(cpu: int, vmf: int) -> int:
    """Map the page for reading, with those around it if the cache has it."""
    result = do_fault_around(cpu, vmf)
    if result != 0:
        return result
    result = __do_fault(cpu, vmf)
    if result & NOT_MAPPED:
        return result
    result = result | finish_fault(cpu, vmf)
    page = load(vmf + VMF.page)
    unlock_page(page)
    if result & NOT_MAPPED:
        put_page(cpu, page)
    return result


@kernel
def do_cow_fault(cpu: int, vmf: int) -> int:
    """Map a private copy of the page."""
    result = vmf_anon_vma_prepare(cpu, vmf)
    if result != 0:
        return result
    cow_page = vmf_alloc_page(cpu, vmf)
    if cow_page == 0:
        return vmf_no_page(cpu, vmf)
    store(vmf + VMF.cow_page, cow_page)
    result = __do_fault(cpu, vmf)
    if (result & NOT_MAPPED) == 0:
        page = load(vmf + VMF.page)
        copy_page(page_address(cpu, cow_page), page_address(cpu, page))
        result = result | finish_fault(cpu, vmf)
        unlock_page(page)
        put_page(cpu, page)
    if result & NOT_MAPPED:
        put_new_page(cpu, cow_page)
    return result


@kernel
def do_shared_fault(cpu: int, vmf: int) -> int:
    """Map the page for writing.  Never speculative: page_mkwrite may sleep."""
    result = __do_fault(cpu, vmf)
    if result & NOT_MAPPED:
        return result
    page = load(vmf + VMF.page)
    if load(load(vmf + VMF.vma) + VMA.vm_ops) == FileOps.GENERIC:
        unlock_page(page)
        result = filemap_page_mkwrite(cpu, vmf)
        if result & NOT_MAPPED:
            put_page(cpu, page)
            return result
    result = result | finish_fault(cpu, vmf)
    if result & NOT_MAPPED:
        unlock_page(page)
        put_page(cpu, page)
        return result
    fault_dirty_shared_page(page)
    return result


@kernel
def __do_fault(cpu: int, vmf: int) -> int:
    """Ask the file for the page, VMF.page; returns VM_FAULT_* bits, LOCKED if it is there."""
    if file_access_begin(cpu, vmf) == 0:
        return VmFault.RETRY
    if load(vmf + VMF.flags) & SPECULATIVE:
        result = filemap_fault_speculative(cpu, vmf)
    else:
        result = filemap_fault(cpu, vmf)
    file_access_end(cpu, vmf)
    return result


@kernel
def do_fault_around(cpu: int, vmf: int) -> int:
    """Map what the cache has of the 64 KiB around a read; NOPAGE if the page itself is mapped now.

    The range lies within the VMA and within one table.
    """
    if file_access_begin(cpu, vmf) == 0:
        return VmFault.RETRY
    result = filemap_map_pages(cpu, vmf)
    file_access_end(cpu, vmf)
    return result


@kernel
def file_access_begin(cpu: int, vmf: int) -> int:
    """See that the file of the VMA stays until `file_access_end`; 0 if a speculative fault ends."""
    if (load(vmf + VMF.flags) & SPECULATIVE) == 0:
        return 1
    rcu_read_lock(cpu)
    if speculation_holds(cpu, vmf, Event.SPF_ABORT_FAULT):
        return 1
    rcu_read_unlock(cpu)
    return 0


@kernel
def file_access_end(cpu: int, vmf: int) -> None:
    """Let the file go; a fault with a lock keeps it by that."""
    if load(vmf + VMF.flags) & SPECULATIVE:
        rcu_read_unlock(cpu)


@kernel
def filemap_map_pages(cpu: int, vmf: int) -> int:
    """Map the pages of the range that are read and not locked by anybody (mm/filemap.c)."""
    vma = load(vmf + VMF.vma)
    address = load(vmf + VMF.address)
    mapping = vma_mapping(vma)
    start = address & -FAULT_AROUND_BYTES
    start = start if start > load(vma + VMA.vm_start) else load(vma + VMA.vm_start)
    stop = start + FAULT_AROUND_BYTES
    table_end = (address | (PMD_SIZE - 1)) + 1
    stop = stop if stop < table_end else table_end
    stop = stop if stop < load(vma + VMA.vm_end) else load(vma + VMA.vm_end)
    first = linear_page_index(vma, start)
    end = first + ((stop - start) >> PAGE_SHIFT)
    page, index = next_uptodate_page(cpu, mapping, first, end)
    if page == 0:
        return 0
    if pte_map_lock(cpu, vmf) == 0:
        unlock_page(page)
        put_page(cpu, page)
        return VmFault.RETRY
    # where the pte of page 0 of the file would be
    base = load(vmf + VMF.pte) - load(vmf + VMF.pgoff) * WORD
    while page != 0:
        map_cached_page(cpu, vmf, base + index * WORD, page)
        unlock_page(page)
        page, index = next_uptodate_page(cpu, mapping, index + 1, end)
    result = VmFault.NOPAGE if read_once(load(vmf + VMF.pte)) != 0 else 0
    spin_unlock(load(vmf + VMF.ptl))
    store(vmf + VMF.pte, 0)
    return result


@kernel
def map_cached_page(cpu: int, vmf: int, pte: int, page: int) -> None:
    """Let an empty `pte` map `page` for reading, and so use the reference to it, or drop that."""
    if read_once(pte) != 0:
        put_page(cpu, page)
        return
    page_add_file_rmap(page)
    inc_mm_file_counter(cpu, page)
    set_pte(pte, page_address(cpu, page) | load(load(vmf + VMF.vma) + VMA.vm_page_prot))
    around = pte != load(vmf + VMF.pte)
    count_vm_event(cpu, Event.FILE_AROUND if around else Event.FILE_PAGE)


@kernel
def finish_fault(cpu: int, vmf: int) -> int:
    """Map VMF.page or the private copy of it, unless another CPU has filled the pte: NOPAGE."""
    if pte_map_lock(cpu, vmf) == 0:
        return VmFault.RETRY
    pte = load(vmf + VMF.pte)
    if read_once(pte) != 0:
        spin_unlock(load(vmf + VMF.ptl))
        count_vm_event(cpu, Event.FILE_LOST)
        return VmFault.NOPAGE
    vma = load(vmf + VMF.vma)
    prot = load(vma + VMA.vm_page_prot)
    page = load(vmf + VMF.cow_page)
    if page != 0:
        inc_mm_counter_fast(cpu)
        page_add_new_anon_rmap(page, vma, load(vmf + VMF.address))
        set_pte(pte, page_address(cpu, page) | prot | WRITABLE)
        count_vm_event(cpu, Event.FILE_COW)
    else:
        page = load(vmf + VMF.page)
        write = load(vmf + VMF.flags) & FaultFlag.WRITE
        page_add_file_rmap(page)
        inc_mm_file_counter(cpu, page)
        set_pte(pte, page_address(cpu, page) | prot | (WRITABLE if write else 0))
        count_vm_event(cpu, Event.FILE_SHARED if write else Event.FILE_PAGE)
    spin_unlock(load(vmf + VMF.ptl))
    return 0


@kernel
def page_add_file_rmap(page: int) -> None:
    """Count one mapping more; under the page-table lock (mm/rmap.c)."""
    atomic_fetch_add_relaxed(page + PAGE.mapcount, 1)


@kernel
def fault_dirty_shared_page(page: int) -> None:
    """Say that a locked page is written to from now on, and unlock it."""
    set_page_dirty(page)
    unlock_page(page)


@slowpath
def wp_page_shared(cpu: int, vmf: int, page: int) -> int:
    """Handle a write to a read-only pte of a shared mapping; the page-table lock is held."""
    get_page(page)
    store(vmf + VMF.page, page)
    result = 0
    if load(load(vmf + VMF.vma) + VMA.vm_ops) == FileOps.GENERIC:
        spin_unlock(load(vmf + VMF.ptl))
        store(vmf + VMF.pte, 0)
        result = filemap_page_mkwrite(cpu, vmf)
        if result & NOT_MAPPED:
            put_page(cpu, page)
            return result & RESULT
        result = finish_mkwrite_fault(cpu, vmf)
    else:
        wp_shared_page_reuse(cpu, vmf)
        lock_page(cpu, page)
    if result == 0:
        set_page_dirty(page)
    unlock_page(page)
    put_page(cpu, page)
    return result & RESULT


@kernel
def finish_mkwrite_fault(cpu: int, vmf: int) -> int:
    """Make the pte writable if it is still what it was; else NOPAGE."""
    if pte_map_lock(cpu, vmf) == 0:
        return VmFault.RETRY
    if read_once(load(vmf + VMF.pte)) != load(vmf + VMF.orig_pte):
        spin_unlock(load(vmf + VMF.ptl))
        count_vm_event(cpu, Event.PTE_CHANGED)
        return VmFault.NOPAGE
    wp_shared_page_reuse(cpu, vmf)
    return 0


@kernel
def wp_shared_page_reuse(cpu: int, vmf: int) -> None:
    """Make the pte writable and unlock the table (wp_page_reuse)."""
    set_pte(load(vmf + VMF.pte), load(vmf + VMF.orig_pte) | WRITABLE)
    count_vm_event(cpu, Event.FILE_MKWRITE)
    spin_unlock(load(vmf + VMF.ptl))
