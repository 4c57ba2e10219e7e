# SPDX-License-Identifier: MIT
"""A secondary MMU: a subscriber that reads an mm's memory through translations of its own.

It stands for what KVM or a device does with MMU notifiers (virt/kvm/kvm_main.c, Linux 5.12): look a
page up without holding on to it, and keep the translation only if no invalidation has been going on
meanwhile (mmu_notifier_retry).  It reads with its lock held, so an invalidation that has been told
is over for it, as a flush of the device's TLB that has been waited for.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import MMU_NOTIFIER, NOTIFIER_SHADOW, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VMA, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, Errno, FaultFlag, Pte, Vm
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from spfemu.mm.pgtable import lookup_pte
from spfemu.mm.populate import faultin_range
from spfemu.mm.sched import cond_resched
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vma import find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, smp_load_acquire, store

OFFSET_MASK = 4095 & -WORD


@kernel
def notifier_read(cpu: int, subscription: int, address: int) -> tuple[int, int]:
    """Load the word at a virtual address through the shadow; (0 or a negative errno, value).

    The CPU runs the mm subscribed to.
    """
    slot = notifier_slot(subscription, address)
    while True:
        spin_lock(cpu, subscription + MMU_NOTIFIER.lock)
        if load(slot) == address & PAGE_MASK:
            value = read_once(load(slot + WORD) + (address & OFFSET_MASK))
            spin_unlock(subscription + MMU_NOTIFIER.lock)
            return 0, value
        spin_unlock(subscription + MMU_NOTIFIER.lock)
        error = notifier_fault(cpu, subscription, address & PAGE_MASK)
        if error != 0:
            return error, 0
        cond_resched(cpu)


@kernel
def notifier_slot(subscription: int, address: int) -> int:
    """Address of the shadow's entry for a page."""
    index = (address >> PAGE_SHIFT) & (NOTIFIER_SHADOW - 1)
    return subscription + MMU_NOTIFIER.shadow + index * (2 * WORD)


@slowpath
def notifier_fault(cpu: int, subscription: int, page: int) -> int:
    """Look a page up and take up its translation unless that may be outdated; 0 or an errno.

    The acquire pairs with the release in __mmu_notifier_invalidate_range_end.
    """
    count_vm_event(cpu, Event.MMU_NOTIFIER_FAULT)
    seq = smp_load_acquire(subscription + MMU_NOTIFIER.invalidate_seq)
    error, frame = secondary_lookup(cpu, load(subscription + MMU_NOTIFIER.mm), page)
    if error != 0:
        return error
    slot = notifier_slot(subscription, page)
    spin_lock(cpu, subscription + MMU_NOTIFIER.lock)
    if mmu_notifier_retry(subscription, seq):
        count_vm_event(cpu, Event.MMU_NOTIFIER_RETRY)
    else:
        store(slot, page)
        store(slot + WORD, frame)
    spin_unlock(subscription + MMU_NOTIFIER.lock)
    return 0


@kernel
def mmu_notifier_retry(subscription: int, seq: int) -> int:
    """Tell whether what was looked up since `seq` was read may be invalid; under the lock."""
    if load(subscription + MMU_NOTIFIER.in_progress) != 0:
        return 1
    return load(subscription + MMU_NOTIFIER.invalidate_seq) != seq


@kernel
def secondary_lookup(cpu: int, mm: int, page: int) -> tuple[int, int]:
    """Find the frame of a page, touched if need be; (0, frame) or (a negative errno, 0).

    What has been touched may be dropped again at once by another reader of the lock, and a fault
    that waits releases the lock: then it is tried again.
    """
    while True:
        mmap_read_lock(cpu, mm)
        vma = find_vma(cpu, mm, page)
        error = -Errno.EFAULT
        if vma != 0 and load(vma + VMA.vm_start) <= page and load(vma + VMA.vm_flags) & Vm.READ:
            error, _ = faultin_range(cpu, vma, page, page + PAGE_SIZE, FaultFlag.ALLOW_RETRY)
        if error == -Errno.EBUSY:
            continue
        frame = secondary_walk(mm, page) if error == 0 else 0
        mmap_read_unlock(cpu, mm)
        if error != 0 or frame != 0:
            return error, frame


@kernel
def secondary_walk(mm: int, page: int) -> int:
    """Frame that a present entry maps at a page, or 0."""
    entry = lookup_pte(mm, page)
    return entry & PTE_ADDR_MASK if entry & Pte.PRESENT else 0
