# SPDX-License-Identifier: MIT
"""What a fault does once its VMA is known: Linux 5.12, mm/memory.c; for files see file_fault.py.

The same code serves locked and speculative faults.  What differs stands behind two gates that
each protocol defines, ``pte_map_lock`` and ``pte_spinlock``: they take the page-table lock and
tell whether the fault may still commit.

The fault travels in a VMF (vm_fault) in the CPU block; its ``vma`` is the real VMA under the mmap
lock, or the CPU's copy of it when speculating.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE, PAGE_SHIFT, PAGE_SIZE, VMA, VMF
from spfemu.mm.config import CONFIG_NUMA
from spfemu.mm.flags import PTE_ADDR_MASK, FaultFlag, PageKind, Pg, Pte, Vm, VmFault
from spfemu.mm.huge_memory import huge_pmd_fault, pmd_of_ptes
from spfemu.mm.migrate import do_numa_page
from spfemu.mm.mmap_lock import release_fault_lock
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.page_alloc import (
    free_page,
    get_page,
    page_address,
    page_kind,
    prep_new_page,
    put_page,
    rmqueue,
    virt_to_page,
)
from spfemu.mm.percpu_rwsem import percpu_down_read_trylock, percpu_up_read
from spfemu.mm.pgtable import (
    alloc_pmd,
    pmd_huge,
    pte_lockptr,
    pte_offset,
    pte_present,
    set_pte,
    table_alloc,
)
from spfemu.mm.rmap import anon_vma_prepare
from spfemu.mm.rss import add_mm_file_rss, inc_mm_counter_fast
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.userfaultfd import handle_userfault
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add_relaxed,
    atomic_fetch_and,
    clear_page,
    copy_page,
    load,
    read_once,
    smp_load_acquire,
    store,
)

if TYPE_CHECKING:  # circular, or defined by the protocol
    from spfemu.mm.file_fault import do_fault, wp_page_shared
    from spfemu.mm.swap_fault import do_swap_page, wp_free_swap
    from spfemu.mm.swap_state import free_swap_cache
    from spfemu.mm.vmscan import alloc_pages_slowpath
    from spfemu.protocols.classic import pte_map_lock, pte_spinlock

WRITABLE = int(Pte.RW | Pte.DIRTY | Pte.ACCESSED)
SPECULATIVE = int(FaultFlag.SPECULATIVE)


@kernel
def access_error(vm_flags: int, flags: int) -> int:
    """Tell whether the VMA forbids the access (arch/x86/mm/fault.c: access_error)."""
    if flags & FaultFlag.WRITE:
        return (vm_flags & Vm.WRITE) == 0
    return (vm_flags & (Vm.READ | Vm.WRITE | Vm.EXEC)) == 0


@kernel
def handle_mm_fault(cpu: int, mm: int, vma: int, address: int, flags: int) -> int:
    """Handle a fault under the mmap lock; returns VM_FAULT_* bits.

    Source: __handle_mm_fault.  Missing tables are allocated here, but no huge pages.
    """
    vmf = cpu + CPU.vmf
    store(vmf + VMF.vma, vma)
    store(vmf + VMF.address, address)
    store(vmf + VMF.flags, flags)
    slot = alloc_pmd(cpu, mm, address)
    if slot == 0:
        return vmf_no_page(cpu, vmf)
    pmd = read_once(slot)
    if pmd_huge(pmd):
        if huge_pmd_fault(cpu, mm, slot, flags):
            return 0
        pmd = pmd_of_ptes(cpu, mm, slot, address)
    if pmd == 0:
        pmd = table_alloc(cpu, mm, slot)
        if pmd == 0:
            return vmf_no_page(cpu, vmf)
    store(vmf + VMF.pmd, slot)
    store(vmf + VMF.orig_pmd, pmd)
    pte = pte_offset(pmd, address)
    orig_pte = read_once(pte)
    store(vmf + VMF.orig_pte, orig_pte)
    store(vmf + VMF.pte, pte if orig_pte != 0 else 0)
    return handle_pte_fault(cpu, vmf)


@kernel
def handle_pte_fault(cpu: int, vmf: int) -> int:
    """Dispatch on the pte that the walk read; returns VM_FAULT_* bits."""
    if load(vmf + VMF.pte) == 0:
        if load(load(vmf + VMF.vma) + VMA.vm_ops) != 0:
            return do_fault(cpu, vmf)
        return do_anonymous_page(cpu, vmf)
    if pte_present(load(vmf + VMF.orig_pte)) == 0:
        return do_swap_page(cpu, vmf)
    if CONFIG_NUMA and load(vmf + VMF.orig_pte) & Pte.PROTNONE:
        # of a VMA that gives access, or the fault would have ended before
        return do_numa_page(cpu, vmf)
    if load(vmf + VMF.flags) & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ATTEMPT_PTE)
    if pte_spinlock(cpu, vmf) == 0:
        return VmFault.RETRY
    pte = load(vmf + VMF.pte)
    entry = read_once(pte)
    if entry != load(vmf + VMF.orig_pte):
        # another CPU changed it first: the access is tried again and faults again if it must
        count_vm_event(cpu, Event.PTE_CHANGED)
        spin_unlock(load(vmf + VMF.ptl))
        return 0
    if load(vmf + VMF.flags) & FaultFlag.WRITE:
        if (entry & Pte.RW) == 0:
            return do_wp_page(cpu, vmf)
        entry = entry | Pte.DIRTY
    set_pte(pte, entry | Pte.ACCESSED)
    spin_unlock(load(vmf + VMF.ptl))
    return 0


@kernel
def do_anonymous_page(cpu: int, vmf: int) -> int:
    """Fill an empty pte: reads map the zero page, writes a fresh zeroed frame."""
    flags = load(vmf + VMF.flags)
    if flags & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ATTEMPT_ANON)
    if flags & FaultFlag.WRITE:
        return do_anonymous_write(cpu, vmf)
    prot = load(load(vmf + VMF.vma) + VMA.vm_page_prot)
    if pte_map_lock(cpu, vmf) == 0:
        return VmFault.RETRY
    pte = load(vmf + VMF.pte)
    if read_once(pte) == 0:
        if load(load(vmf + VMF.vma) + VMA.vm_flags) & Vm.UFFD_MISSING:
            return deliver_userfault(cpu, vmf, Vm.UFFD_MISSING)
        set_pte(pte, load(cpu + CPU.zero_pfn) | prot | Pte.SPECIAL)
        count_vm_event(cpu, Event.ANON_ZERO_PAGE)
    else:
        count_vm_event(cpu, Event.ANON_LOST)
    spin_unlock(load(vmf + VMF.ptl))
    return 0


@kernel
def do_anonymous_write(cpu: int, vmf: int) -> int:
    """Allocate and clear before the gate, map behind it."""
    result = vmf_anon_vma_prepare(cpu, vmf)
    if result != 0:
        return result
    vma = load(vmf + VMF.vma)
    page = vmf_alloc_zeroed_page(cpu, vmf)
    if page == 0:
        return vmf_no_page(cpu, vmf)
    if pte_map_lock(cpu, vmf) == 0:
        put_new_page(cpu, page)
        return VmFault.RETRY
    pte = load(vmf + VMF.pte)
    if read_once(pte) != 0:
        count_vm_event(cpu, Event.ANON_LOST)
        spin_unlock(load(vmf + VMF.ptl))
        put_new_page(cpu, page)
        return 0
    if load(vma + VMA.vm_flags) & Vm.UFFD_MISSING:
        put_new_page(cpu, page)
        return deliver_userfault(cpu, vmf, Vm.UFFD_MISSING)
    inc_mm_counter_fast(cpu)
    page_add_new_anon_rmap(page, vma, load(vmf + VMF.address))
    set_pte(pte, page_address(cpu, page) | load(vma + VMA.vm_page_prot) | WRITABLE)
    count_vm_event(cpu, Event.ANON_PAGE)
    spin_unlock(load(vmf + VMF.ptl))
    return 0


@slowpath
def deliver_userfault(cpu: int, vmf: int, reason: int) -> int:
    """Release the page-table lock and leave the fault to a monitor; returns VM_FAULT_* bits.

    A speculative fault holds nothing that it could release while it waits.
    """
    spin_unlock(load(vmf + VMF.ptl))
    if load(vmf + VMF.flags) & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ABORT_USERFAULTFD)
        return VmFault.RETRY
    return handle_userfault(cpu, vmf, reason)


@kernel
def vmf_anon_vma_prepare(cpu: int, vmf: int) -> int:
    """See that the VMA has an anon_vma; returns 0 or VM_FAULT_* bits.

    A speculative fault may not make one: that looks at neighbouring VMAs.
    """
    vma = load(vmf + VMF.vma)
    if load(vma + VMA.anon_vma) != 0:
        return 0
    if load(vmf + VMF.flags) & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ABORT_ANON_VMA)
        return VmFault.RETRY
    if anon_vma_prepare(cpu, vma) != 0:
        return VmFault.OOM
    return 0


@kernel
def do_wp_page(cpu: int, vmf: int) -> int:
    """Handle a write to a present read-only pte; the page-table lock is held and validated.

    A page that nobody else refers to is made writable in place; else, and for the zero page or a
    file's, the lock is dropped and a copy made.
    """
    if load(vmf + VMF.flags) & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ATTEMPT_WP)
    entry = load(vmf + VMF.orig_pte)
    if load(load(vmf + VMF.vma) + VMA.vm_flags) & Vm.UFFD_WP:
        if entry & Pte.UFFD_WP:
            return deliver_userfault(cpu, vmf, Vm.UFFD_WP)
        flush_tlb_pending(cpu)
    if entry & Pte.SPECIAL:
        spin_unlock(load(vmf + VMF.ptl))
        store(vmf + VMF.pte, 0)
        return wp_page_copy(cpu, vmf, 0)
    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
    if page_kind(page) == PageKind.FILE:
        if load(load(vmf + VMF.vma) + VMA.vm_flags) & Vm.SHARED:
            return wp_page_shared(cpu, vmf, page)
    elif wp_not_in_swap(cpu, page) and wp_can_reuse(page):
        if read_once(page + PAGE.flags) & Pg.ANON_SHARED:
            atomic_fetch_and(page + PAGE.flags, ~Pg.ANON_SHARED)
        set_pte(load(vmf + VMF.pte), entry | WRITABLE)
        count_vm_event(cpu, Event.WP_REUSE)
        spin_unlock(load(vmf + VMF.ptl))
        return 0
    get_page(page)
    spin_unlock(load(vmf + VMF.ptl))
    store(vmf + VMF.pte, 0)
    result = wp_page_copy(cpu, vmf, page)
    put_page(cpu, page)
    return result


@slowpath
def flush_tlb_pending(cpu: int) -> None:
    """Flush what a holder of the mmap lock for reading has protected and is about to flush.

    Else somebody could go on writing to a page that is being copied (6ce64428d620, Linux 5.12).
    The page-table lock is held: who has changed an entry under it has counted itself before.
    """
    mm = load(cpu + CPU.mm)
    if read_once(mm + MM.tlb_flush_pending) != 0:
        flush_tlb_mm(cpu, mm)


@kernel
def wp_not_in_swap(cpu: int, page: int) -> int:
    """Tell whether a page has no copy in the swap area, or lost it just now."""
    if load(page + PAGE.flags) & Pg.SWAPCACHE:
        return wp_free_swap(cpu, page)
    return 1


@kernel
def wp_can_reuse(page: int) -> int:
    """Tell whether a private page may be written in place: nobody else refers to it.

    The acquire pairs with the update in put_page: who shared the page has done with it.
    """
    return smp_load_acquire(page + PAGE.refcount) == 1


@kernel
def wp_page_copy(cpu: int, vmf: int, old: int) -> int:
    """Copy `old` (0: the zero page) to a fresh frame and map that, if nothing changed meanwhile.

    A speculative fault keeps subscribers from registering until it is done: it does not hold the
    mmap lock, and they must hear of its invalidation from start to end or not at all.
    """
    result = vmf_anon_vma_prepare(cpu, vmf)
    if result != 0:
        return result
    page = vmf_alloc_page(cpu, vmf)
    if page == 0:
        return vmf_no_page(cpu, vmf)
    if old == 0:
        clear_page(page_address(cpu, page))
    else:
        copy_page(page_address(cpu, page), page_address(cpu, old))
    mm = load(cpu + CPU.mm)
    speculative = load(vmf + VMF.flags) & SPECULATIVE
    if speculative and percpu_down_read_trylock(cpu, mm + MM.mmu_notifier_lock) == 0:
        count_vm_event(cpu, Event.SPF_ABORT_MMU_NOTIFIER)
        put_new_page(cpu, page)
        return VmFault.RETRY
    address = load(vmf + VMF.address)
    mmu_notifier_invalidate_range_start(cpu, mm, address, address + PAGE_SIZE)
    result = wp_page_map_copy(cpu, vmf, old, page)
    mmu_notifier_invalidate_range_end(cpu, mm, address, address + PAGE_SIZE)
    if speculative:
        percpu_up_read(cpu, mm + MM.mmu_notifier_lock)
    return result


@kernel
def wp_page_map_copy(cpu: int, vmf: int, old: int, page: int) -> int:
    """Map `page` in place of `old` if nothing changed meanwhile; returns VM_FAULT_* bits.

    Passes the gate a second time: the page-table lock was dropped for the copy.
    """
    if pte_map_lock(cpu, vmf) == 0:
        put_new_page(cpu, page)
        return VmFault.RETRY
    pte = load(vmf + VMF.pte)
    if read_once(pte) != load(vmf + VMF.orig_pte):
        count_vm_event(cpu, Event.PTE_CHANGED)
        spin_unlock(load(vmf + VMF.ptl))
        put_new_page(cpu, page)
        return 0
    # nobody may go on reading the old frame once the new one can be written
    mm = load(cpu + CPU.mm)
    vma = load(vmf + VMF.vma)
    address = load(vmf + VMF.address)
    set_pte(pte, 0)
    flush_tlb_mm(cpu, mm)
    mmu_notifier_invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    page_add_new_anon_rmap(page, vma, address)
    set_pte(pte, page_address(cpu, page) | load(vma + VMA.vm_page_prot) | WRITABLE)
    count_vm_event(cpu, Event.WP_COPY)
    if old == 0:
        inc_mm_counter_fast(cpu)
    else:
        if page_kind(old) == PageKind.FILE:
            inc_mm_counter_fast(cpu)
            add_mm_file_rss(cpu, load(cpu + CPU.mm), old, -1)
        page_remove_rmap(old)
    spin_unlock(load(vmf + VMF.ptl))
    if old != 0:
        free_swap_cache(cpu, old)
        put_page(cpu, old)
    return 0


@kernel
def vmf_alloc_page(cpu: int, vmf: int) -> int:
    """Take a frame for an anonymous page; 0 if there is none, for a speculative fault at hand."""
    page = rmqueue(cpu)
    if page == 0:
        page = vmf_alloc_slowpath(cpu, vmf)
        if page == 0:
            return 0
    prep_new_page(page, PageKind.ANON)
    return page


@kernel
def vmf_alloc_zeroed_page(cpu: int, vmf: int) -> int:
    """Take a frame for an anonymous page and clear it; as `vmf_alloc_page`."""
    page = vmf_alloc_page(cpu, vmf)
    if page != 0:
        clear_page(page_address(cpu, page))
    return page


@slowpath
def vmf_alloc_slowpath(cpu: int, vmf: int) -> int:
    """Reclaim memory for a fault that may; returns a frame or 0."""
    if load(vmf + VMF.flags) & SPECULATIVE:
        return 0
    return alloc_pages_slowpath(cpu)


@slowpath
def vmf_no_page(cpu: int, vmf: int) -> int:
    """Return the VM_FAULT_* bits of a fault without memory: only one under the mmap lock decides.

    Whoever has that lock can walk the page tables; others may find a writer waiting for it, and
    nothing to reclaim.
    """
    flags = load(vmf + VMF.flags)
    if flags & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ABORT_RECLAIM)
        return VmFault.RETRY
    if flags & FaultFlag.VMA_LOCK:
        if flags & FaultFlag.ALLOW_RETRY:
            release_fault_lock(cpu, vmf)
        return VmFault.RETRY
    return VmFault.OOM


@kernel
def put_new_page(cpu: int, page: int) -> None:
    """Give back a frame that was allocated for a fault and never mapped."""
    store(page + PAGE.refcount, 0)
    free_page(cpu, page)


@kernel
def page_add_new_anon_rmap(page: int, vma: int, address: int) -> None:
    """Say where a fresh frame is mapped; under the page-table lock (mm/rmap.c)."""
    store(page + PAGE.mapcount, 1)
    store(page + PAGE.mapping, load(vma + VMA.anon_vma) | 1)
    store(page + PAGE.index, linear_page_index(vma, address))


@kernel
def linear_page_index(vma: int, address: int) -> int:
    """Offset of `address` in the mapping, in pages."""
    return ((address - load(vma + VMA.vm_start)) >> PAGE_SHIFT) + load(vma + VMA.vm_pgoff)


@kernel
def page_remove_rmap(page: int) -> None:
    """Count one mapping less; under the page-table lock."""
    atomic_fetch_add_relaxed(page + PAGE.mapcount, -1)


@kernel
def pte_map_lock_nonspec(cpu: int, vmf: int) -> int:
    """Take the page-table lock of a fault that holds the mmap lock; always succeeds."""
    address = load(vmf + VMF.address)
    pmd = read_once(load(vmf + VMF.pmd))
    ptl = pte_lockptr(cpu, pmd)
    store(vmf + VMF.pte, pte_offset(pmd, address))
    store(vmf + VMF.ptl, ptl)
    spin_lock(cpu, ptl)
    return 1
