# SPDX-License-Identifier: MIT
"""Per-VMA locks: a fault holds a read-write lock of its VMA instead of the mmap lock (Linux 6.4).

A writer does not unlock single VMAs.  It takes the lock of each VMA that it is about to change
only for a moment, to wait for the faults inside, and notes the number of its write section in
``vm_lock_seq``; a fault that finds the current number there keeps out.  The end of the section,
``mm_lock_seq + 1``, unlocks them all.

Source: S. Baghdasaryan, "Per-VMA locks" v4, as merged in 6.4, with the fixes of 6.4.y: the VMA's
anon_vma is looked at with the lock held, mm_lock_seq is read with acquire and written with
release.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, RWSEM, VMA, VMF, WORD
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.fault import do_locked_fault
from spfemu.mm.flags import VM_UFFD_FLAGS, FaultFlag, VmFault
from spfemu.mm.memory import access_error, handle_mm_fault, pte_map_lock_nonspec
from spfemu.mm.rcu import call_rcu, rcu_read_lock, rcu_read_unlock
from spfemu.mm.rwsem import down_read_trylock, down_write, up_read, up_write
from spfemu.mm.vma import SlabState, __find_vma, vm_area_free_rcu
from spfemu.mm.vma_write import vma_slab_typesafe
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
    write_once,
)

# Faults


@kernel
def do_user_addr_fault(cpu: int, address: int, flags: int) -> int:
    """Try once under the VMA's lock, else classically; returns VM_FAULT_* bits."""
    mm = load(cpu + CPU.mm)
    count_vm_event(cpu, Event.VMA_LOCK_ATTEMPT)
    vma = lock_vma_under_rcu(cpu, mm, address)
    if vma == 0:
        return do_locked_fault(cpu, address, flags)
    if access_error(load(vma + VMA.vm_flags), flags):
        vma_end_read(cpu, vma)
        count_vm_event(cpu, Event.VMA_LOCK_ACCESS_ERROR)
        return do_locked_fault(cpu, address, flags)
    result = handle_mm_fault(cpu, mm, vma, address, flags | FaultFlag.VMA_LOCK)
    vma_end_read(cpu, vma)
    if (result & VmFault.RETRY) == 0:
        count_vm_event(cpu, Event.VMA_LOCK_SUCCESS)
        return result
    count_vm_event(cpu, Event.VMA_LOCK_RETRY)
    return do_locked_fault(cpu, address, flags)


@kernel
def lock_vma_under_rcu(cpu: int, mm: int, address: int) -> int:
    """Find the VMA at `address` and lock it for reading; 0 if the fault needs the mmap lock.

    Until the VMA is locked, and known to be in the tree, only RCU keeps it.
    """
    rcu_read_lock(cpu)
    while True:
        vma = __find_vma(cpu, mm, address)
        if vma == 0 or read_once(vma + VMA.vm_start) > address:
            return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_UNMAPPED)
        if read_once(vma + VMA.vm_ops) != 0:
            return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_NOT_ANON)
        reason = vma_start_read(cpu, mm, vma)
        if reason != 0:
            return vma_lock_abort(cpu, reason)
        # whoever makes an anon_vma looks at neighbours, which this lock does not keep
        if load(vma + VMA.anon_vma) == 0:
            vma_end_read(cpu, vma)
            return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_ANON_VMA)
        # a fault that waits for a monitor lets go of its lock, which is the mmap lock up to 6.5
        if load(vma + VMA.vm_flags) & VM_UFFD_FLAGS:
            vma_end_read(cpu, vma)
            return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_USERFAULTFD)
        if address < load(vma + VMA.vm_start) or address >= load(vma + VMA.vm_end):
            vma_end_read(cpu, vma)
            return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_RANGE)
        if load(vma + VMA.detached) == 0:
            rcu_read_unlock(cpu)
            return vma
        # it was taken away, and perhaps another one is there by now
        vma_end_read(cpu, vma)
        count_vm_event(cpu, Event.VMA_LOCK_MISS)


@kernel
def vma_lock_abort(cpu: int, reason: int) -> int:
    """Leave the lookup and count why; returns 0."""
    rcu_read_unlock(cpu)
    count_vm_event(cpu, Event.VMA_LOCK_ABORT)
    count_vm_event(cpu, reason)
    return 0


@kernel
def vma_start_read(cpu: int, mm: int, vma: int) -> int:
    """Lock `vma` of `mm` for reading if that needs no waiting; returns 0, or the reason why not.

    The acquire pairs with the release in vma_end_write_all: who finds the VMA unlocked sees all
    that the writer has changed.  The first look saves the atomic of an attempt that must fail.
    """
    if read_once(vma + VMA.vm_lock_seq) == read_once(mm + MM.mm_lock_seq):
        return Event.VMA_LOCK_ABORT_SEQ
    if down_read_trylock(cpu, vma + VMA.vm_lock) == 0:
        return Event.VMA_LOCK_ABORT_BUSY
    if load(vma + VMA.vm_lock_seq) == smp_load_acquire(mm + MM.mm_lock_seq):
        up_read(cpu, vma + VMA.vm_lock)
        return Event.VMA_LOCK_ABORT_SEQ_RECHECK
    return 0


@kernel
def vma_end_read(cpu: int, vma: int) -> None:
    """Unlock `vma`; RCU keeps its lock until the next writer has been woken."""
    rcu_read_lock(cpu)
    up_read(cpu, vma + VMA.vm_lock)
    rcu_read_unlock(cpu)


@kernel
def pte_map_lock(cpu: int, vmf: int) -> int:
    """Take the page-table lock before filling an empty pte; returns 1 (it cannot fail)."""
    return pte_map_lock_nonspec(cpu, vmf)


@kernel
def pte_spinlock(cpu: int, vmf: int) -> int:
    """Take the page-table lock before changing a present pte; returns 1 (it cannot fail)."""
    return pte_map_lock_nonspec(cpu, vmf)


@kernel
def swap_fault_allowed(cpu: int, vmf: int) -> int:
    """Tell whether the fault may handle a swapped page: not under the VMA's lock (until 6.6)."""
    return (load(vmf + VMF.flags) & FaultFlag.VMA_LOCK) == 0


# Writers


@kernel
def vma_lock_init(cpu: int, vma: int) -> None:
    """Prepare the lock of a VMA that has just been allocated: free, never locked for writing."""
    store(vma + VMA.vm_lock_seq, -1)
    store(vma + VMA.detached, 0)
    for i in range(RWSEM.SIZE // WORD):
        store(vma + VMA.vm_lock + i * WORD, 0)


@kernel
def vma_start_write(cpu: int, vma: int) -> None:
    """Lock `vma` for writing until vma_end_write_all; the mmap lock is held for writing.

    Waits for the faults inside.  Later ones see the number when they have the lock.
    """
    seq = load(load(vma + VMA.vm_mm) + MM.mm_lock_seq)
    if load(vma + VMA.vm_lock_seq) == seq:
        return
    down_write(cpu, vma + VMA.vm_lock)
    write_once(vma + VMA.vm_lock_seq, seq)
    up_write(cpu, vma + VMA.vm_lock)


@kernel
def vmas_start_write(cpu: int, vma: int, end: int) -> None:
    """Lock `vma` and all behind it that start below `end`."""
    while vma != 0 and load(vma + VMA.vm_start) < end:
        vma_start_write(cpu, vma)
        vma = load(vma + VMA.vm_next)


@kernel
def vma_end_write_all(cpu: int, mm: int) -> None:
    """Unlock all VMAs of the mm; the release pairs with the acquire in vma_start_read."""
    smp_store_release(mm + MM.mm_lock_seq, load(mm + MM.mm_lock_seq) + 1)


@kernel
def vma_mark_attached(cpu: int, vma: int) -> None:
    """See that a VMA that faults will find is locked until the writer is done with it (6.5)."""
    seq = load(load(vma + VMA.vm_mm) + MM.mm_lock_seq)
    vm_bug_on(load(vma + VMA.vm_lock_seq) != seq, Bug.VMA_NOT_LOCKED)


@kernel
def vma_mark_detached(cpu: int, vma: int) -> None:
    """Say that `vma` has left the tree: a fault that still finds it unlocked looks again."""
    write_once(vma + VMA.detached, 1)


@kernel
def vmas_mark_detached(cpu: int, vma: int) -> None:
    """Say so of all VMAs of a list linked by vm_next."""
    while vma != 0:
        vma_mark_detached(cpu, vma)
        vma = load(vma + VMA.vm_next)


@kernel
def vm_area_free(cpu: int, vma: int) -> None:
    """Free an unlinked VMA after a grace period; the fault of a single thread may be looking too.

    At once if its memory stays a VMA's (SLAB_TYPESAFE_BY_RCU).  Source: kernel/fork.c, with
    CONFIG_PER_VMA_LOCK.
    """
    if vma_slab_typesafe():
        vm_area_free_rcu(cpu, vma)
        return
    store(vma + VMA.slab_state, SlabState.RCU_PENDING)
    call_rcu(cpu, vma)
