# SPDX-License-Identifier: MIT
"""Per-VMA locks as one reference count; freed VMAs are used again at once (Linux 6.15).

``vm_refcnt`` says it all: 0 is a detached VMA, which nobody can lock; 1 an attached one; each fault
inside adds 1, and a writer that waits for them VMA_LOCK_OFFSET, which keeps new ones out.  Whether
a writer has the VMA is told by ``vm_lock_seq`` and ``mm_lock_seq``, as in `vma-lock`.

The slab is type-stable (SLAB_TYPESAFE_BY_RCU): a fault that has looked up a VMA may find it freed
and handed out again, to another process even.  So whatever it has read before it got its reference
means nothing, and process and range are looked at again.

Source: S. Baghdasaryan, "reimplement per-vma lock as a refcount" v10, as merged in 6.15; vm_mm is
compared where the fix of July 2025 does it.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, VMA, VMF
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.fault import do_locked_fault
from spfemu.mm.flags import FaultFlag, VmFault
from spfemu.mm.memory import access_error, handle_mm_fault
from spfemu.mm.mm_struct import mmdrop, mmgrab
from spfemu.mm.mmap_lock import mmap_read_trylock, mmap_read_unlock, release_fault_lock
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.rmap import anon_vma_prepare
from spfemu.mm.sched import cpu_sleep
from spfemu.mm.vma import __find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_release,
    cmpxchg_acquire,
    futex_wake,
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    write_once,
)
from spfemu.protocols.vma_lock import vma_lock_abort

EXTENDS = "vma-lock"

VMA_LOCK_OFFSET = 1 << 30
"""Added to vm_refcnt by a writer that waits for its readers."""
VMA_REF_LIMIT = VMA_LOCK_OFFSET - 2
"""Most references that a reader may find and still add its own."""
LOCKED_FAULT = int(FaultFlag.VMA_LOCK | FaultFlag.ALLOW_RETRY)
"""Flags of a fault that holds a reference; who returns VM_FAULT_RETRY drops it."""
VMA_DETACHED = -1
"""Result of vma_start_read: there is nothing to lock any more."""

# Faults


@kernel
def do_user_addr_fault(cpu: int, address: int, flags: int) -> int:
    """Try once with a reference to the VMA, else classically; returns VM_FAULT_* bits.

    An access that the VMA forbids is a SIGSEGV at once: the VMA cannot change meanwhile.
    """
    mm = load(cpu + CPU.mm)
    count_vm_event(cpu, Event.VMA_LOCK_ATTEMPT)
    vma = lock_vma_under_rcu(cpu, mm, address)
    if vma == 0:
        return do_locked_fault(cpu, address, flags)
    if access_error(load(vma + VMA.vm_flags), flags):
        vma_end_read(cpu, vma)
        count_vm_event(cpu, Event.VMA_LOCK_SUCCESS)
        count_vm_event(cpu, Event.FAULT_SIGSEGV_ACCERR)
        return VmFault.SIGSEGV
    result = handle_mm_fault(cpu, mm, vma, address, flags | LOCKED_FAULT)
    if (result & VmFault.RETRY) == 0:
        vma_end_read(cpu, vma)
        count_vm_event(cpu, Event.VMA_LOCK_SUCCESS)
        return result
    count_vm_event(cpu, Event.VMA_LOCK_RETRY)
    return do_locked_fault(cpu, address, flags)


@kernel
def lock_vma_under_rcu(cpu: int, mm: int, address: int) -> int:
    """Find the VMA at `address` and take a reference; 0 if the fault needs the mmap lock."""
    rcu_read_lock(cpu)
    while True:
        vma = __find_vma(cpu, mm, address)
        if vma == 0:
            return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_UNMAPPED)
        if read_once(vma + VMA.vm_start) > address:
            return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_UNMAPPED)
        reason = vma_start_read(cpu, mm, vma)
        if reason == 0:
            break
        if reason != VMA_DETACHED:
            return vma_lock_abort(cpu, reason)
        # it was taken away, and perhaps another one is there by now
        count_vm_event(cpu, Event.VMA_LOCK_MISS)
    # from here on it stays what it is
    if address < load(vma + VMA.vm_start) or address >= load(vma + VMA.vm_end):
        vma_end_read(cpu, vma)
        return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_RANGE)
    rcu_read_unlock(cpu)
    return vma


@kernel
def vma_start_read(cpu: int, mm: int, vma: int) -> int:
    """Take a reference to `vma` if it is one of `mm` and not locked for writing.

    Returns 0, VMA_DETACHED or the reason.  The acquire of the count pairs with the release in
    vma_mark_attached: the fields are those of the VMA to which the reference is.  That of
    mm_lock_seq pairs with the release in vma_end_write_all.
    """
    if read_once(vma + VMA.vm_lock_seq) == read_once(mm + MM.mm_lock_seq):
        return Event.VMA_LOCK_ABORT_SEQ
    count = read_once(vma + VMA.vm_refcnt)
    while True:
        if count == 0:
            return VMA_DETACHED
        if count > VMA_REF_LIMIT:
            return Event.VMA_LOCK_ABORT_BUSY
        found = cmpxchg_acquire(vma + VMA.vm_refcnt, count, count + 1)
        if found == count:
            break
        count = found
    if load(vma + VMA.vm_mm) != mm:
        vma_put_of_other_mm(cpu, vma)
        return Event.VMA_LOCK_ABORT_MM
    if load(vma + VMA.vm_lock_seq) == smp_load_acquire(mm + MM.mm_lock_seq):
        vma_refcount_put(vma)
        return Event.VMA_LOCK_ABORT_SEQ_RECHECK
    return 0


@kernel
def vma_end_read(cpu: int, vma: int) -> None:
    """Drop the reference of a fault."""
    rcu_read_lock(cpu)
    vma_refcount_put(vma)
    rcu_read_unlock(cpu)


@kernel
def vma_refcount_put(vma: int) -> None:
    """Drop a reference and wake the writer if it waits for this one.

    The VMA may be another process's as soon as the reference is gone, so its mm is read before.
    """
    mm = load(vma + VMA.vm_mm)
    count = atomic_fetch_add(vma + VMA.vm_refcnt, -1) - 1
    vm_bug_on(count < 0, Bug.REFCOUNT_UNDERFLOW)
    if count == VMA_LOCK_OFFSET or count == VMA_LOCK_OFFSET + 1:
        vma_wake_writer(mm)


@slowpath
def vma_put_of_other_mm(cpu: int, vma: int) -> None:
    """Drop a reference to the VMA of another process, which may end as soon as it is gone.

    Until then the reference keeps the mm_struct, whose writer waits for it and is woken behind it.
    Source: the fix of July 2025 (3104138517fc).
    """
    mm = load(vma + VMA.vm_mm)
    mmgrab(mm)
    vma_refcount_put(vma)
    mmdrop(cpu, mm)


@slowpath
def vma_wake_writer(mm: int) -> None:
    """Wake the only writer that an mm can have; the count pairs with its look in vma_enter_locked.

    Linux: rcuwait_wake_up.
    """
    atomic_fetch_add(mm + MM.vma_writer_wait, 1)
    futex_wake(mm + MM.vma_writer_wait, 1)


@kernel
def vmf_anon_vma_prepare(cpu: int, vmf: int) -> int:
    """See that the VMA has an anon_vma; returns 0 or VM_FAULT_* bits.

    Making one looks at neighbours, which the mmap lock keeps; waiting for that could be waiting
    for a writer that waits for this fault.  Source: __vmf_anon_prepare.
    """
    vma = load(vmf + VMF.vma)
    if load(vma + VMA.anon_vma) != 0:
        return 0
    locked = load(vmf + VMF.flags) & FaultFlag.VMA_LOCK
    mm = load(vma + VMA.vm_mm)
    if locked and mmap_read_trylock(cpu, mm) == 0:
        release_fault_lock(cpu, vmf)
        return VmFault.RETRY
    error = anon_vma_prepare(cpu, vma)
    if locked:
        mmap_read_unlock(cpu, mm)
    return VmFault.OOM if error != 0 else 0


@kernel
def swap_fault_allowed(cpu: int, vmf: int) -> int:
    """Tell whether the fault may handle a swapped page: it may, its lock waits with it (6.7)."""
    return 1


# Writers


@kernel
def vma_lock_init(cpu: int, vma: int) -> None:
    """Prepare a VMA that has just been allocated: detached, never locked for writing.

    The count is left alone, it is 0: faults that are late may look at it at any time.
    """
    vm_bug_on(read_once(vma + VMA.vm_refcnt), Bug.REFCOUNT_UNDERFLOW)
    write_once(vma + VMA.vm_lock_seq, -1)


@kernel
def vma_mark_attached(cpu: int, vma: int) -> None:
    """Give the VMA the reference of the tree; the release pairs with the acquire in vma_start_read.

    Done before it is linked, so that who finds it need not wait for this.
    """
    seq = load(load(vma + VMA.vm_mm) + MM.mm_lock_seq)
    vm_bug_on(load(vma + VMA.vm_lock_seq) != seq, Bug.VMA_NOT_LOCKED)
    smp_store_release(vma + VMA.vm_refcnt, 1)


@kernel
def vma_start_write(cpu: int, vma: int) -> None:
    """Lock `vma` for writing until vma_end_write_all; the mmap lock is held for writing."""
    seq = load(load(vma + VMA.vm_mm) + MM.mm_lock_seq)
    if load(vma + VMA.vm_lock_seq) == seq:
        return
    locked = vma_enter_locked(cpu, vma, VMA_LOCK_OFFSET + 1)
    write_once(vma + VMA.vm_lock_seq, seq)
    if locked:
        # release: who takes a reference from here on sees the number
        atomic_fetch_add_release(vma + VMA.vm_refcnt, -VMA_LOCK_OFFSET)


@kernel
def vma_mark_detached(cpu: int, vma: int) -> None:
    """Drop the reference of the tree and wait until nobody has one.

    The VMA is locked for writing, so the only others are faults that are about to see that.
    """
    if atomic_fetch_add(vma + VMA.vm_refcnt, -1) == 1:
        return
    if vma_enter_locked(cpu, vma, VMA_LOCK_OFFSET):
        atomic_fetch_add_release(vma + VMA.vm_refcnt, -VMA_LOCK_OFFSET)


@slowpath
def vma_enter_locked(cpu: int, vma: int, target: int) -> int:
    """Keep new readers out and wait for those inside; returns 0 if the VMA is detached.

    `target` is the count without readers.  The acquire pairs with their dropping: what they did
    comes before what the writer does.  The word is read before the count: if the last reader
    comes between, the word differs and the sleep ends at once.
    """
    count = read_once(vma + VMA.vm_refcnt)
    while True:
        if count == 0:
            return 0
        found = cmpxchg_acquire(vma + VMA.vm_refcnt, count, count + VMA_LOCK_OFFSET)
        if found == count:
            break
        count = found
    wait = load(vma + VMA.vm_mm) + MM.vma_writer_wait
    while True:
        woken = smp_load_acquire(wait)
        if smp_load_acquire(vma + VMA.vm_refcnt) == target:
            return 1
        cpu_sleep(cpu, wait, woken, -1)


@kernel
def vma_slab_typesafe() -> int:
    """Tell that freed VMAs are used again at once: their memory stays VMAs'."""
    return 1
