# SPDX-License-Identifier: MIT
"""Touching pages before they are needed (Linux 6.18, mm/gup.c).

Each VMA is done under the mmap lock for reading, by the same faults as those of programs.  A fault
that waits, for a page's lock or a monitor (userfaultfd.py), lets go of the mmap lock for that; the
walk goes on from its page with the VMA that is there then.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE_SIZE, VMA
from spfemu.mm.flags import Errno, FaultFlag, Pte, Vm
from spfemu.mm.gup import faultin_page
from spfemu.mm.irq import irq_poll
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from spfemu.mm.pgtable import lookup_pte
from spfemu.mm.vma import VM_ACCESS_FLAGS, find_vma, find_vma_intersection
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once

ALLOW_RETRY = int(FaultFlag.ALLOW_RETRY)


@kernel
def page_is_mapped(mm: int, address: int, need: int) -> int:
    """Tell whether the entry of `address` has all bits of `need` (follow_page_mask)."""
    return (lookup_pte(mm, address) & need) == need


@kernel
def faultin_range(cpu: int, vma: int, start: int, end: int, fault_flags: int) -> tuple[int, int]:
    """Touch all pages of [start, end), part of `vma`: (0 or a negative errno, where it ended).

    Needs the mmap lock for reading.  -ENOMEM, -EFAULT (SIGBUS), -EINTR after a fatal signal;
    -EBUSY: a fault has waited and released the lock, so that the page is to be tried again.
    """
    mm = load(vma + VMA.vm_mm)
    need = Pte.PRESENT | Pte.RW if fault_flags & FaultFlag.WRITE else Pte.PRESENT
    address = start
    while address < end:
        if read_once(cpu + CPU.fatal_signal) != 0:
            return -Errno.EINTR, address
        irq_poll(cpu)
        if page_is_mapped(mm, address, need):
            address += PAGE_SIZE
            continue
        error = faultin_page(cpu, mm, vma, address, fault_flags)
        if error != 0:
            return error, address
        count_vm_event(cpu, Event.POPULATE_FAULT)
    return 0, end


@kernel
def populate_vma_page_range(
    cpu: int, vma: int, start: int, end: int, fault_flags: int
) -> tuple[int, int]:
    """Touch what the VMA allows: writing if it is private and writable; as `faultin_range`."""
    vm_flags = load(vma + VMA.vm_flags)
    if vm_flags & Vm.LOCKONFAULT:
        return 0, end
    if (vm_flags & VM_ACCESS_FLAGS) == 0:
        return -Errno.EFAULT, start
    if (vm_flags & (Vm.WRITE | Vm.SHARED)) == Vm.WRITE:
        fault_flags = fault_flags | FaultFlag.WRITE
    error, start = faultin_range(cpu, vma, start, end, fault_flags)
    return error, start


@slowpath
def __mm_populate(cpu: int, mm: int, start: int, length: int, ignore_errors: int) -> int:
    """Touch all that is mapped in a range; 0, or the first error unless they are ignored.

    Takes the mmap lock itself.
    """
    end = start + length
    limit = load(mm + MM.task_size)
    end = end if end < limit else limit
    while start < end:
        mmap_read_lock(cpu, mm)
        vma = find_vma_intersection(cpu, mm, start, end)
        if vma == 0:
            mmap_read_unlock(cpu, mm)
            return 0
        first = load(vma + VMA.vm_start)
        start = first if first > start else start
        stop = load(vma + VMA.vm_end)
        stop = stop if stop < end else end
        error, start = populate_vma_page_range(cpu, vma, start, stop, ALLOW_RETRY)
        if error == -Errno.EBUSY:
            continue
        mmap_read_unlock(cpu, mm)
        if error != 0 and ignore_errors == 0:
            return error
        start = stop
    return 0


@slowpath
def madvise_populate(cpu: int, mm: int, start: int, end: int, write: int) -> int:
    """Touch all pages of a range as MADV_POPULATE_READ or _WRITE; 0 or a negative errno.

    -ENOMEM at a hole, -EINVAL where the VMA does not allow the access.
    """
    flags = ALLOW_RETRY | FaultFlag.WRITE if write else ALLOW_RETRY
    while start < end:
        mmap_read_lock(cpu, mm)
        vma = find_vma(cpu, mm, start)
        error = -Errno.ENOMEM
        if vma != 0 and load(vma + VMA.vm_start) <= start:
            stop = load(vma + VMA.vm_end)
            stop = stop if stop < end else end
            error = -Errno.EINVAL
            if load(vma + VMA.vm_flags) & (Vm.WRITE if write else Vm.READ):
                error, start = faultin_range(cpu, vma, start, stop, flags)
        if error != -Errno.EBUSY:
            mmap_read_unlock(cpu, mm)
            if error != 0:
                return error
    return 0
