# SPDX-License-Identifier: MIT
"""Hinting faults, and moving a page to who uses it (Linux 5.12, mm/memory.c, mm/migrate.c).

Only anonymous pages move that one entry maps and nobody else refers to.  The entry is empty under
its page-table lock while the page is copied, as migrate_misplaced_transhuge_page has it: there are
no migration entries that faults would wait for, they wait for the lock.
"""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE, PAGE_SIZE, VMA, VMF
from spfemu.mm.flags import PTE_ADDR_MASK, FaultFlag, PageKind, Pte, VmFault
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from spfemu.mm.nodes import page_is_local
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
from spfemu.mm.pgtable import set_pte
from spfemu.mm.spinlock import spin_unlock
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import copy_page, load, read_once, smp_load_acquire, store, xchg

if TYPE_CHECKING:  # defined by the protocol
    from spfemu.protocols.classic import pte_map_lock, pte_spinlock

SPECULATIVE = int(FaultFlag.SPECULATIVE)
PTE_ACCESS_BITS = int(Pte.PRESENT | Pte.USER | Pte.NX | Pte.PROTNONE)
"""What a scan changes in an entry: the right to write stays in it (pte_mk_savedwrite)."""


@slowpath
def do_numa_page(cpu: int, vmf: int) -> int:
    """Give an entry its rights back that a scan has taken; VM_FAULT_* bits.

    Then the page is moved if it is on another node.  The access is tried again either way.
    """
    if load(vmf + VMF.flags) & SPECULATIVE:
        count_vm_event(cpu, Event.SPF_ATTEMPT_NUMA)
    if pte_spinlock(cpu, vmf) == 0:
        return VmFault.RETRY
    pte = load(vmf + VMF.pte)
    entry = read_once(pte)
    if entry != load(vmf + VMF.orig_pte):
        count_vm_event(cpu, Event.PTE_CHANGED)
        spin_unlock(load(vmf + VMF.ptl))
        return 0
    prot = load(load(vmf + VMF.vma) + VMA.vm_page_prot)
    set_pte(pte, (entry & ~PTE_ACCESS_BITS) | prot | Pte.ACCESSED)
    count_vm_event(cpu, Event.NUMA_HINT_FAULTS)
    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
    if page_is_local(cpu, page):
        count_vm_event(cpu, Event.NUMA_HINT_FAULTS_LOCAL)
        spin_unlock(load(vmf + VMF.ptl))
        return 0
    get_page(page)
    spin_unlock(load(vmf + VMF.ptl))
    result = migrate_misplaced_page(cpu, vmf, page)
    put_page(cpu, page)
    return result


@slowpath
def migrate_misplaced_page(cpu: int, vmf: int, page: int) -> int:
    """Move the page of a fault, to which the caller has a reference, here; VM_FAULT_* bits.

    A speculative fault does without if somebody subscribes to the mm's changes just now, and else
    passes the gate a second time, as for a copy (wp_page_copy).
    """
    # from what is free: nothing is reclaimed for this
    new = rmqueue(cpu)
    if new == 0:
        return 0
    prep_new_page(new, PageKind.ANON)
    mm = load(cpu + CPU.mm)
    speculative = load(vmf + VMF.flags) & SPECULATIVE
    if page_is_local(cpu, new) == 0 or (
        speculative and percpu_down_read_trylock(cpu, mm + MM.mmu_notifier_lock) == 0
    ):
        migrate_put_new(cpu, new)
        return 0
    address = load(vmf + VMF.address)
    mmu_notifier_invalidate_range_start(cpu, mm, address, address + PAGE_SIZE)
    result = 0
    if pte_map_lock(cpu, vmf) == 0:
        result = VmFault.RETRY
        migrate_put_new(cpu, new)
    else:
        migrate_page_locked(cpu, vmf, page, new)
    mmu_notifier_invalidate_range_end(cpu, mm, address, address + PAGE_SIZE)
    if speculative:
        percpu_up_read(cpu, mm + MM.mmu_notifier_lock)
    return result


@kernel
def migrate_page_locked(cpu: int, vmf: int, page: int, new: int) -> None:
    """Let the entry map `new`, with the contents of `page`, if that is still mapped and alone.

    Called with the page-table lock held, which is released.
    """
    pte = load(vmf + VMF.pte)
    entry = read_once(pte)
    mapped = entry & Pte.PRESENT and virt_to_page(cpu, entry & PTE_ADDR_MASK) == page
    if mapped == 0 or page_kind(page) != PageKind.ANON or page_is_shared(page):
        spin_unlock(load(vmf + VMF.ptl))
        migrate_put_new(cpu, new)
        return
    # nobody may write to the old frame once it is being copied
    entry = xchg(pte, 0)
    mm = load(cpu + CPU.mm)
    flush_tlb_mm(cpu, mm)
    if page_is_shared(page):
        # a walk without locks was faster; after the flush there is none any more
        set_pte(pte, entry)
        spin_unlock(load(vmf + VMF.ptl))
        migrate_put_new(cpu, new)
        return
    address = load(vmf + VMF.address)
    mmu_notifier_invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    copy_page(page_address(cpu, new), page_address(cpu, page))
    store(new + PAGE.flags, load(page + PAGE.flags))
    store(new + PAGE.mapping, load(page + PAGE.mapping))
    store(new + PAGE.index, load(page + PAGE.index))
    store(new + PAGE.mapcount, 1)
    set_pte(pte, (entry & ~PTE_ADDR_MASK) | page_address(cpu, new))
    store(page + PAGE.mapcount, 0)
    count_vm_event(cpu, Event.NUMA_PAGE_MIGRATED)
    spin_unlock(load(vmf + VMF.ptl))
    # that of the entry
    put_page(cpu, page)


@kernel
def page_is_shared(page: int) -> int:
    """Tell whether others refer to the page than one entry and the caller.

    The acquire pairs with the update in put_page, as in wp_can_reuse.
    """
    return smp_load_acquire(page + PAGE.refcount) != 2 or read_once(page + PAGE.mapcount) != 1


@kernel
def migrate_put_new(cpu: int, new: int) -> None:
    """Give back a frame that no entry has mapped."""
    store(new + PAGE.refcount, 0)
    free_page(cpu, new)
