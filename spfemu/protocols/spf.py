# SPDX-License-Identifier: MIT
"""Speculative page faults: no mmap lock, a copy of the VMA, one sequence count per mm.

A fault reads ``mmap_seq``, copies the VMA, walks the page table without a lock, and commits under
the page-table lock only if the count still has its even value: no mmap writer ran meanwhile.
Anything else aborts, once, to the classical path.

Source: M. Lespinasse, "Speculative page faults", v2 of 2022-01-28 for Linux 5.17, anonymous
memory; files as in his RFC of 2021-04-06 for 5.12.  Step numbers as in docs/protocols.md.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, VMA, VMF, WORD
from spfemu.mm.config import CONFIG_MMU_GATHER_RCU_TABLE_FREE
from spfemu.mm.fault import do_locked_fault
from spfemu.mm.flags import FaultFlag, FileOps, Vm, VmFault
from spfemu.mm.irq import local_irq_disable, local_irq_enable
from spfemu.mm.memory import access_error, handle_pte_fault, pte_map_lock_nonspec
from spfemu.mm.mmap_lock import mmap_seq_read_check, mmap_seq_read_start
from spfemu.mm.pgtable import (
    pgd_offset,
    pmd_bad,
    pmd_offset,
    pte_lockptr,
    pte_offset,
    pud_offset,
)
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.spinlock import spin_trylock, spin_unlock
from spfemu.mm.vma import __find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, store

SPECULATIVE = int(FaultFlag.SPECULATIVE)
VMA_COPY_SIZE = VMA.slab_state
"""Bytes of a VMA that are copied: all of it up to the slab's own words."""


@kernel
def do_user_addr_fault(cpu: int, address: int, flags: int) -> int:
    """Try once speculatively, else classically; returns VM_FAULT_* bits.

    A process with a single thread gains nothing from speculating and does not try.
    """
    mm = load(cpu + CPU.mm)
    if read_once(mm + MM.mm_users) != 1:
        count_vm_event(cpu, Event.SPF_ATTEMPT)
        result = do_speculative_fault(cpu, mm, address, flags | SPECULATIVE)
        if (result & VmFault.RETRY) == 0:
            return result
        count_vm_event(cpu, Event.SPF_ABORT)
    return do_locked_fault(cpu, address, flags)


@kernel
def do_speculative_fault(cpu: int, mm: int, address: int, flags: int) -> int:
    """Handle the fault without the mmap lock, or return VM_FAULT_RETRY with the reason counted."""
    seq = mmap_seq_read_start(mm)
    if seq & 1:
        count_vm_event(cpu, Event.SPF_ABORT_ODD)
        return VmFault.RETRY
    # the lookup may meet a tree that is being rotated and a VMA that is half written or already
    # queued for freeing: RCU keeps the memory a VMA's, the check below tells what it is worth
    rcu_read_lock(cpu)
    vma = __find_vma(cpu, mm, address)
    if vma == 0 or load(vma + VMA.vm_start) > address:
        rcu_read_unlock(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_UNMAPPED)
        return VmFault.RETRY
    if vma_can_speculate(vma, flags) == 0:
        rcu_read_unlock(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_NO_SPECULATE)
        return VmFault.RETRY
    count_fault_begin(vma)
    copy_pvma(cpu + CPU.pvma, vma)
    rcu_read_unlock(cpu)
    result = speculate_on_copy(cpu, mm, address, flags, seq)
    count_fault_end(vma)
    return result


@kernel
def count_fault_begin(vma: int) -> None:
    """Note in the VMA that a fault begins, for who wants to know (`spf-counted`)."""


@kernel
def count_fault_end(vma: int) -> None:
    """Note in the VMA, or what its slot holds by now, that the fault has ended."""


@kernel
def speculate_on_copy(cpu: int, mm: int, address: int, flags: int, seq: int) -> int:
    """Handle the fault by the copy of the VMA, if that is one; results as do_speculative_fault."""
    if mmap_seq_read_check(cpu, mm, seq, Event.SPF_ABORT_VMA_COPY) == 0:
        return VmFault.RETRY
    # from here on the copy is a VMA as some moment had it; only the locked path may decide that
    # an access is an error, because by now another moment may have come
    if access_error(load(cpu + CPU.pvma + VMA.vm_flags), flags):
        count_vm_event(cpu, Event.SPF_ABORT_ACCESS_ERROR)
        return VmFault.RETRY
    return do_handle_mm_fault(cpu, mm, address, flags, seq)


@kernel
def vma_can_speculate(vma: int, flags: int) -> int:
    """Tell whether there are speculative faults in such a VMA (RFC of the series, April 2021).

    Of files, those that find their pages in the page cache by filemap_fault; not shared memory, and
    no writes to shared mappings, because page_mkwrite may sleep.
    """
    vm_ops = load(vma + VMA.vm_ops)
    if vm_ops == 0:
        return 1
    if vm_ops != FileOps.GENERIC:
        return 0
    return (flags & FaultFlag.WRITE) == 0 or (load(vma + VMA.vm_flags) & Vm.SHARED) == 0


@kernel
def copy_pvma(pvma: int, vma: int) -> None:
    """Copy the whole VMA; each word may come from another moment until the sequence is checked."""
    for i in range(VMA_COPY_SIZE // WORD):
        store(pvma + i * WORD, load(vma + i * WORD))


@kernel
def do_handle_mm_fault(cpu: int, mm: int, address: int, flags: int, seq: int) -> int:
    """Walk the tables as they are, none is allocated, and handle the pte found there.

    What the walk found may be freed once it ends; the gate proves later that it was not.
    Source: __handle_mm_fault, speculative arm.
    """
    vmf = cpu + CPU.vmf
    store(vmf + VMF.vma, cpu + CPU.pvma)
    store(vmf + VMF.address, address)
    store(vmf + VMF.flags, flags)
    store(vmf + VMF.seq, seq)
    speculative_page_walk_begin(cpu)
    pgd = read_once(pgd_offset(mm, address))
    pud = read_once(pud_offset(pgd, address)) if pmd_bad(pgd) == 0 else 0
    if pmd_bad(pud):
        speculative_page_walk_end(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_PUD)
        return VmFault.RETRY
    slot = pmd_offset(pud, address)
    pmd = read_once(slot)
    if pmd_bad(pmd):
        speculative_page_walk_end(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_PMD)
        return VmFault.RETRY
    pte = pte_offset(pmd, address)
    orig_pte = read_once(pte)
    store(vmf + VMF.pmd, slot)
    store(vmf + VMF.orig_pmd, pmd)
    store(vmf + VMF.orig_pte, orig_pte)
    store(vmf + VMF.pte, pte if orig_pte != 0 else 0)
    speculative_page_walk_end(cpu)
    return handle_pte_fault(cpu, vmf)


@kernel
def speculative_page_walk_begin(cpu: int) -> None:
    """Keep page tables from being freed, though not from being unlinked."""
    if CONFIG_MMU_GATHER_RCU_TABLE_FREE:
        rcu_read_lock(cpu)
    else:
        local_irq_disable(cpu)


@kernel
def speculative_page_walk_end(cpu: int) -> None:
    """Let page tables go again."""
    if CONFIG_MMU_GATHER_RCU_TABLE_FREE:
        rcu_read_unlock(cpu)
    else:
        local_irq_enable(cpu)


@kernel
def speculation_holds(cpu: int, vmf: int, reason: int) -> int:
    """Tell whether no writer has run since the fault began; counts `reason` if one has.

    If so, the tables found by the walk are still linked, and the VMA maps its file still.
    """
    return mmap_seq_read_check(cpu, load(cpu + CPU.mm), load(vmf + VMF.seq), reason)


@kernel
def pte_map_lock(cpu: int, vmf: int) -> int:
    """Take the page-table lock before filling an empty pte; 0 if speculation failed."""
    if (load(vmf + VMF.flags) & SPECULATIVE) == 0:
        return pte_map_lock_nonspec(cpu, vmf)
    return pte_map_lock_speculative(cpu, vmf)


@kernel
def pte_spinlock(cpu: int, vmf: int) -> int:
    """Take the page-table lock before changing a present pte; 0 if speculation failed."""
    if (load(vmf + VMF.flags) & SPECULATIVE) == 0:
        return pte_map_lock_nonspec(cpu, vmf)
    return pte_map_lock_speculative(cpu, vmf)


@kernel
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    """The commit gate; returns 1 with the lock held, or 0 with nothing held and a reason counted.

    The second check, under the lock, is where the fault takes effect: a writer that comes later
    has to take this lock before it changes the entry.  The lock is only tried for: its holder may
    be waiting for this CPU to take a TLB-flush IPI, which with interrupts off it cannot.
    """
    speculative_page_walk_begin(cpu)
    # the tables found by the walk were still linked here, and now they stay allocated
    if speculation_holds(cpu, vmf, Event.SPF_ABORT_PTE_MAP_LOCK_SEQ1) == 0:
        speculative_page_walk_end(cpu)
        return 0
    pmd = read_once(load(vmf + VMF.pmd))
    if pmd != load(vmf + VMF.orig_pmd):
        speculative_page_walk_end(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_PTE_MAP_LOCK_PMD)
        return 0
    ptl = pte_lockptr(cpu, pmd)
    if spin_trylock(cpu, ptl) == 0:
        speculative_page_walk_end(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_PTE_MAP_LOCK_PTL)
        return 0
    if speculation_holds(cpu, vmf, Event.SPF_ABORT_PTE_MAP_LOCK_SEQ2) == 0:
        spin_unlock(ptl)
        speculative_page_walk_end(cpu)
        return 0
    speculative_page_walk_end(cpu)
    store(vmf + VMF.pte, pte_offset(pmd, load(vmf + VMF.address)))
    store(vmf + VMF.ptl, ptl)
    return 1
