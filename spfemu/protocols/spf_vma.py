# SPDX-License-Identifier: MIT
"""Speculative page faults with a sequence count and a reference count in each VMA (Dufour, v12).

A writer disturbs only the faults of the VMAs that it changes, instead of all of the process.  The
price is a reference: two atomic updates of the VMA per fault, on the line of its sequence count.
The tree has a sequence count of its own, by which a lookup begins again after a change.

Source: L. Dufour, "Speculative page faults" v12 of 2019-04-16 for Linux 5.1.  What differs: fields
are copied as in `spf` instead of being kept in the vm_fault; the count is checked before the walk
and in the gate, not also behind the walk; it moves when a VMA is detached, not while its range is
zapped, so MADV_DONTNEED leaves it alone.  Files are handled as by `spf`; v12 has anonymous memory
only.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, VMA, VMF
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.config import CONFIG_VMA_LATCH
from spfemu.mm.flags import VmFault
from spfemu.mm.irq import cpu_relax_poll
from spfemu.mm.memory import access_error
from spfemu.mm.rcu import call_rcu, rcu_read_lock, rcu_read_unlock
from spfemu.mm.vma import SlabState, __find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add,
    cmpxchg_acquire,
    load,
    read_once,
    smp_rmb,
    smp_wmb,
    store,
    write_once,
)
from spfemu.protocols.spf import (
    do_handle_mm_fault,
    vma_can_speculate,
)

EXTENDS = "spf"

# Faults


@kernel
def do_speculative_fault(cpu: int, mm: int, address: int, flags: int) -> int:
    """Handle the fault without the mmap lock, or return VM_FAULT_RETRY with the reason counted."""
    vma = get_vma(cpu, mm, address)
    if vma == 0:
        count_vm_event(cpu, Event.SPF_ABORT_UNMAPPED)
        return VmFault.RETRY
    result = speculate_on_vma(cpu, mm, vma, address, flags)
    put_vma(cpu, vma)
    return result


@kernel
def get_vma(cpu: int, mm: int, address: int) -> int:
    """Find the first VMA that ends behind `address` and take a reference, or return 0."""
    rcu_read_lock(cpu)
    if CONFIG_VMA_LATCH:
        vma = __find_vma(cpu, mm, address)
    else:
        vma = find_vma_at_rest(cpu, mm, address)
    if vma != 0 and get_vma_unless_zero(vma) == 0:
        vma = 0
    rcu_read_unlock(cpu)
    return vma


@kernel
def find_vma_at_rest(cpu: int, mm: int, address: int) -> int:
    """Look up while nobody changes the tree; a latched tree has a copy for which that holds.

    The read barriers pair with the write barriers of mm_write_seqlock and mm_write_sequnlock.
    """
    while True:
        seq = read_once(mm + MM.mm_seq)
        if seq & 1:
            cpu_relax_poll(cpu)
            continue
        smp_rmb()
        vma = __find_vma(cpu, mm, address)
        smp_rmb()
        if read_once(mm + MM.mm_seq) == seq:
            return vma


@kernel
def get_vma_unless_zero(vma: int) -> int:
    """Take a reference if there is one already; RCU keeps the memory.  Returns 1 if taken."""
    count = read_once(vma + VMA.vm_ref_count)
    while count != 0:
        found = cmpxchg_acquire(vma + VMA.vm_ref_count, count, count + 1)
        if found == count:
            return 1
        count = found
    return 0


@kernel
def put_vma(cpu: int, vma: int) -> None:
    """Drop a reference; the last one frees the VMA, which lookups may still meet, through RCU."""
    count = atomic_fetch_add(vma + VMA.vm_ref_count, -1)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    if count == 1:
        store(vma + VMA.slab_state, SlabState.RCU_PENDING)
        call_rcu(cpu, vma)


@kernel
def speculate_on_vma(cpu: int, mm: int, vma: int, address: int, flags: int) -> int:
    """Handle the fault while a reference keeps the VMA, though not as it is."""
    seq = read_once(vma + VMA.vm_sequence)
    if seq & 1:
        count_vm_event(cpu, Event.SPF_ABORT_ODD)
        return VmFault.RETRY
    # pairs with the write barrier in vm_write_end: who sees the even count sees all changes
    smp_rmb()
    if vma_can_speculate(vma, flags) == 0:
        count_vm_event(cpu, Event.SPF_ABORT_NO_SPECULATE)
        return VmFault.RETRY
    if load(vma + VMA.vm_ops) == 0 and load(vma + VMA.anon_vma) == 0:
        count_vm_event(cpu, Event.SPF_ABORT_ANON_VMA)
        return VmFault.RETRY
    if address < load(vma + VMA.vm_start) or address >= load(vma + VMA.vm_end):
        count_vm_event(cpu, Event.SPF_ABORT_UNMAPPED)
        return VmFault.RETRY
    pvma = cpu + CPU.pvma
    copy_pvma(pvma, vma)
    if vma_has_changed(vma, seq):
        count_vm_event(cpu, Event.SPF_ABORT_VMA_COPY)
        return VmFault.RETRY
    if access_error(load(pvma + VMA.vm_flags), flags):
        count_vm_event(cpu, Event.SPF_ABORT_ACCESS_ERROR)
        return VmFault.RETRY
    store(cpu + CPU.vmf + VMF.orig_vma, vma)
    return do_handle_mm_fault(cpu, mm, address, flags, seq)


@kernel
def copy_pvma(pvma: int, vma: int) -> None:
    """Copy the fields that the handlers need; the sequence count tells what they are worth."""
    store(pvma + VMA.vm_start, load(vma + VMA.vm_start))
    store(pvma + VMA.vm_end, load(vma + VMA.vm_end))
    store(pvma + VMA.vm_page_prot, load(vma + VMA.vm_page_prot))
    store(pvma + VMA.vm_flags, load(vma + VMA.vm_flags))
    store(pvma + VMA.anon_vma, load(vma + VMA.anon_vma))
    store(pvma + VMA.vm_ops, load(vma + VMA.vm_ops))
    store(pvma + VMA.vm_pgoff, load(vma + VMA.vm_pgoff))
    store(pvma + VMA.vm_file, load(vma + VMA.vm_file))


@kernel
def vma_has_changed(vma: int, seq: int) -> int:
    """Tell whether a writer began to change `vma`, or took it out of the tree, since `seq`.

    The barrier keeps the caller's reads before these; it pairs with that in vm_write_begin.
    """
    smp_rmb()
    return read_once(vma + VMA.vm_sequence) != seq or read_once(vma + VMA.detached) != 0


@kernel
def speculation_holds(cpu: int, vmf: int, reason: int) -> int:
    """Tell whether the VMA is unchanged; counts `reason` if not.

    The tables of a VMA are freed only after it has been detached, which vma_has_changed sees; its
    file is kept by the reference to it.
    """
    if vma_has_changed(load(vmf + VMF.orig_vma), load(vmf + VMF.seq)):
        count_vm_event(cpu, reason)
        return 0
    return 1


# Writers


@kernel
def vma_lock_init(cpu: int, vma: int) -> None:
    """Give a VMA that has just been allocated its first reference; the count goes on."""
    store(vma + VMA.detached, 0)
    store(vma + VMA.vm_ref_count, 1)


@kernel
def vm_write_begin(vma: int) -> None:
    """Make the VMA's count odd; who sees one of the changes that follow sees the odd count too."""
    write_once(vma + VMA.vm_sequence, read_once(vma + VMA.vm_sequence) + 1)
    smp_wmb()


@kernel
def vm_write_end(vma: int) -> None:
    """Make it even again; who sees the even count sees all changes."""
    smp_wmb()
    write_once(vma + VMA.vm_sequence, read_once(vma + VMA.vm_sequence) + 1)


@kernel
def vma_mark_detached(cpu: int, vma: int) -> None:
    """Let no fault commit any more that has found `vma`, or that still holds a reference."""
    vm_write_begin(vma)
    write_once(vma + VMA.detached, 1)
    vm_write_end(vma)


@kernel
def vmas_mark_detached(cpu: int, vma: int) -> None:
    """Do so for all VMAs of a list linked by vm_next."""
    while vma != 0:
        vma_mark_detached(cpu, vma)
        vma = load(vma + VMA.vm_next)


@kernel
def mm_write_seqlock(mm: int) -> None:
    """Make the tree's count odd if lookups go by it; the mmap lock is held for writing."""
    if not CONFIG_VMA_LATCH:
        write_once(mm + MM.mm_seq, read_once(mm + MM.mm_seq) + 1)
        smp_wmb()


@kernel
def mm_write_sequnlock(mm: int) -> None:
    """Make it even again."""
    if not CONFIG_VMA_LATCH:
        smp_wmb()
        write_once(mm + MM.mm_seq, read_once(mm + MM.mm_seq) + 1)


@kernel
def vm_area_free(cpu: int, vma: int) -> None:
    """Drop the reference of the tree."""
    put_vma(cpu, vma)
