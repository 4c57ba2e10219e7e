# SPDX-License-Identifier: MIT
"""Touching pages before they are needed (Linux 6.18, mm/gup.c).

Each VMA is done under one hold of the mmap read lock, by the same faults as those of programs.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import MM, PAGE_SIZE, VMA
from spfemu.mm.flags import Errno, FaultFlag, Pte, Vm, VmFault
from spfemu.mm.irq import irq_poll
from spfemu.mm.memory import handle_mm_fault
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from spfemu.mm.pgtable import lookup_pte
from spfemu.mm.vma import VM_ACCESS_FLAGS, find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load


@kernel
def page_is_mapped(mm: int, address: int, need: int) -> int:
    """Tell whether the entry of `address` has all bits of `need` (follow_page_mask)."""
    return (lookup_pte(mm, address) & need) == need


@kernel
def faultin_range(cpu: int, vma: int, start: int, end: int, write: int) -> int:
    """Touch all pages of [start, end), part of `vma`; 0, -ENOMEM or -EFAULT (SIGBUS).

    Needs the mmap lock for reading.
    """
    mm = load(vma + VMA.vm_mm)
    need = Pte.PRESENT | Pte.RW if write else Pte.PRESENT
    flags = FaultFlag.WRITE if write else 0
    address = start
    while address < end:
        irq_poll(cpu)
        if page_is_mapped(mm, address, need):
            address += PAGE_SIZE
            continue
        result = handle_mm_fault(cpu, mm, vma, address, flags)
        if result & VmFault.OOM:
            return -Errno.ENOMEM
        if result & (VmFault.SIGBUS | VmFault.SIGSEGV):
            return -Errno.EFAULT
        count_vm_event(cpu, Event.POPULATE_FAULT)
    return 0


@kernel
def populate_vma_page_range(cpu: int, vma: int, start: int, end: int) -> int:
    """Touch what the VMA allows: writing if it is private and writable; as `faultin_range`."""
    vm_flags = load(vma + VMA.vm_flags)
    if vm_flags & Vm.LOCKONFAULT:
        return 0
    if (vm_flags & VM_ACCESS_FLAGS) == 0:
        return -Errno.EFAULT
    write = (vm_flags & (Vm.WRITE | Vm.SHARED)) == Vm.WRITE
    return faultin_range(cpu, vma, start, end, write)


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
        vma = find_vma(cpu, mm, start)
        if vma == 0 or load(vma + VMA.vm_start) >= end:
            mmap_read_unlock(cpu, mm)
            return 0
        first = load(vma + VMA.vm_start)
        start = first if first > start else start
        stop = load(vma + VMA.vm_end)
        stop = stop if stop < end else end
        error = populate_vma_page_range(cpu, vma, start, stop)
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
    while start < end:
        mmap_read_lock(cpu, mm)
        vma = find_vma(cpu, mm, start)
        error = -Errno.ENOMEM
        stop = end
        if vma != 0 and load(vma + VMA.vm_start) <= start:
            stop = load(vma + VMA.vm_end)
            stop = stop if stop < end else end
            allowed = load(vma + VMA.vm_flags) & (Vm.WRITE if write else Vm.READ)
            error = -Errno.EINVAL
            if allowed:
                error = faultin_range(cpu, vma, start, stop, write)
        mmap_read_unlock(cpu, mm)
        if error != 0:
            return error
        start = stop
    return 0
