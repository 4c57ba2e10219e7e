# SPDX-License-Identifier: MIT
"""Locking of memory (Linux 6.18, mm/mlock.c).

Nothing is ever taken away from a locked mapping; what is left of locking is accounts, flags that
keep mappings apart, and pages touched at once.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_MASK, PAGE_SHIFT, VMA
from spfemu.mm.flags import RLIM_INFINITY, Errno, Mcl, Vm
from spfemu.mm.limits import VM_LOCKED_MASK, can_do_mlock
from spfemu.mm.mmap import count_vma_pages_range, page_align
from spfemu.mm.mmap_lock import mmap_write_lock_killable, mmap_write_unlock
from spfemu.mm.populate import __mm_populate
from spfemu.mm.syscalls import syscall_result
from spfemu.mm.vma import find_vma, vm_area_reserve
from spfemu.mm.vma_modify import vm_flags_reset, vma_modify_flags
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, store

MLOCK_ONFAULT = 1
"""The flag of mlock2."""
VM_LOCKED = int(Vm.LOCKED)
MCL_ALL = int(Mcl.CURRENT | Mcl.FUTURE | Mcl.ONFAULT)


@kernel
def mlock_fixup(
    cpu: int, mm: int, vma: int, prev: int, start: int, end: int, vm_flags: int
) -> tuple[int, int]:
    """Give [start, end), part of `vma`, new flags; (0, the VMA there) or (-ENOMEM, 0)."""
    old_flags = load(vma + VMA.vm_flags)
    if old_flags == vm_flags:
        return 0, vma
    error, vma = vma_modify_flags(cpu, mm, prev, vma, start, end, vm_flags)
    if error != 0:
        return error, 0
    pages = (end - start) >> PAGE_SHIFT
    if (vm_flags & Vm.LOCKED) == 0:
        pages = -pages
    if (vm_flags ^ old_flags) & Vm.LOCKED:
        store(mm + MM.locked_vm, load(mm + MM.locked_vm) + pages)
    vm_flags_reset(cpu, vma, vm_flags)
    return 0, vma


@kernel
def apply_vma_lock_flags(cpu: int, mm: int, start: int, end: int, lock: int) -> int:
    """Set the VM_LOCKED bits of [start, end) to `lock`; 0 or -ENOMEM, at a hole too."""
    vma = find_vma(cpu, mm, start)
    if vma == 0 or load(vma + VMA.vm_start) > start:
        return -Errno.ENOMEM
    prev = vma if load(vma + VMA.vm_start) < start else load(vma + VMA.vm_prev)
    while True:
        part_end = load(vma + VMA.vm_end)
        part_end = part_end if part_end < end else end
        vm_flags = (load(vma + VMA.vm_flags) & ~VM_LOCKED_MASK) | lock
        error, prev = mlock_fixup(cpu, mm, vma, prev, start, part_end, vm_flags)
        if error != 0:
            return error
        start = part_end
        if start >= end:
            return 0
        vma = prev
        if load(prev + VMA.vm_end) <= start:
            vma = load(prev + VMA.vm_next)
        if vma == 0 or load(vma + VMA.vm_start) > start:
            return -Errno.ENOMEM


@kernel
def apply_mlockall_flags(cpu: int, mm: int, flags: int) -> None:
    """Set the VM_LOCKED bits of all that is and, by `def_flags`, of all that will be mapped.

    A VMA that cannot be changed is left as it is.
    """
    lock = VM_LOCKED_MASK if flags & Mcl.ONFAULT else VM_LOCKED
    store(mm + MM.def_flags, lock if flags & Mcl.FUTURE else 0)
    if flags & Mcl.FUTURE and (flags & Mcl.CURRENT) == 0:
        return
    if (flags & Mcl.CURRENT) == 0:
        lock = 0
    prev = 0
    vma = load(mm + MM.mmap)
    while vma != 0:
        start = load(vma + VMA.vm_start)
        end = load(vma + VMA.vm_end)
        vm_flags = (load(vma + VMA.vm_flags) & ~VM_LOCKED_MASK) | lock
        error, changed = mlock_fixup(cpu, mm, vma, prev, start, end, vm_flags)
        prev = vma if error != 0 else changed
        vma = load(prev + VMA.vm_next)


@kernel
def mlock_range_end(start: int, length: int) -> int:
    """Return the end of the pages that a range touches."""
    return (start & PAGE_MASK) + page_align(length + (start & ~PAGE_MASK))


@kernel
def mlock_check(start: int, end: int) -> int:
    """Return -EINVAL for a range around the end of all addresses, -ENOMEM beyond user space.

    Negative numbers are the unsigned ones from 2**63 on.
    """
    if start < 0:
        return -Errno.EINVAL if end >= 0 or end < start else -Errno.ENOMEM if end != start else 0
    if end < 0:
        return -Errno.ENOMEM
    return -Errno.EINVAL if end < start else 0


@kernel
def do_mlock(cpu: int, start: int, length: int, lock: int) -> int:
    """Lock a range, and touch it; 0 or a negative errno."""
    mm = load(cpu + CPU.mm)
    if can_do_mlock(mm) == 0:
        return -Errno.EPERM
    end = mlock_range_end(start, length)
    start = start & PAGE_MASK
    limit = load(mm + MM.rlimit_memlock)
    if limit != RLIM_INFINITY and end - start < 0:
        # more than any limit, which is looked at first
        return -Errno.ENOMEM
    error = mlock_check(start, end)
    if error != 0 or start == end:
        return error
    vm_area_reserve(cpu)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return -Errno.EINTR
    locked = ((end - start) >> PAGE_SHIFT) + load(mm + MM.locked_vm)
    error = -Errno.ENOMEM
    if limit != RLIM_INFINITY and locked > limit >> PAGE_SHIFT:
        locked -= count_mm_mlocked_page_nr(cpu, mm, start, end)
    if limit == RLIM_INFINITY or locked <= limit >> PAGE_SHIFT:
        error = apply_vma_lock_flags(cpu, mm, start, end, lock)
    mmap_write_unlock(cpu, mm)
    if error != 0:
        return error
    error = __mm_populate(cpu, mm, start, end - start, 0)
    # what POSIX says: no page there, resp. no memory for one (__mlock_posix_error_return)
    if error == -Errno.EFAULT:
        return -Errno.ENOMEM
    return -Errno.EAGAIN if error == -Errno.ENOMEM else error


@kernel
def count_mm_mlocked_page_nr(cpu: int, mm: int, start: int, end: int) -> int:
    """Return how many pages of [start, end) are locked already."""
    pages = 0
    vma = find_vma(cpu, mm, start)
    while vma != 0 and load(vma + VMA.vm_start) < end:
        if load(vma + VMA.vm_flags) & Vm.LOCKED:
            first = load(vma + VMA.vm_start)
            first = first if first > start else start
            stop = load(vma + VMA.vm_end)
            stop = stop if stop < end else end
            pages += count_vma_pages_range(cpu, mm, first, stop)
        vma = load(vma + VMA.vm_next)
    return pages


@kernel
def sys_mlock(cpu: int, start: int, length: int) -> int:
    """Lock the pages of a range and touch them; 0 or a negative errno."""
    count_vm_event(cpu, Event.CALL_MLOCK)
    return syscall_result(cpu, do_mlock(cpu, start, length, Vm.LOCKED))


@kernel
def sys_mlock2(cpu: int, start: int, length: int, flags: int) -> int:
    """Do so, or with MLOCK_ONFAULT (1) lock them when they are touched."""
    count_vm_event(cpu, Event.CALL_MLOCK)
    if flags & ~MLOCK_ONFAULT:
        return syscall_result(cpu, -Errno.EINVAL)
    lock = Vm.LOCKED | Vm.LOCKONFAULT if flags & MLOCK_ONFAULT else Vm.LOCKED
    return syscall_result(cpu, do_mlock(cpu, start, length, lock))


@kernel
def sys_munlock(cpu: int, start: int, length: int) -> int:
    """Unlock the pages of a range; 0 or a negative errno."""
    count_vm_event(cpu, Event.CALL_MLOCK)
    mm = load(cpu + CPU.mm)
    end = mlock_range_end(start, length)
    start = start & PAGE_MASK
    error = mlock_check(start, end)
    if error != 0 or start == end:
        return syscall_result(cpu, error)
    vm_area_reserve(cpu)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    error = apply_vma_lock_flags(cpu, mm, start, end, 0)
    mmap_write_unlock(cpu, mm)
    return syscall_result(cpu, error)


@kernel
def sys_mlockall(cpu: int, flags: int) -> int:
    """Lock all that is mapped (MCL_CURRENT), will be (MCL_FUTURE), or both."""
    count_vm_event(cpu, Event.CALL_MLOCK)
    mm = load(cpu + CPU.mm)
    if flags & ~MCL_ALL or (flags & ~Mcl.ONFAULT) == 0:
        return syscall_result(cpu, -Errno.EINVAL)
    if can_do_mlock(mm) == 0:
        return syscall_result(cpu, -Errno.EPERM)
    vm_area_reserve(cpu)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    limit = load(mm + MM.rlimit_memlock)
    fits = limit == RLIM_INFINITY or load(mm + MM.total_vm) <= limit >> PAGE_SHIFT
    error = -Errno.ENOMEM
    if fits or (flags & Mcl.CURRENT) == 0:
        apply_mlockall_flags(cpu, mm, flags)
        error = 0
    mmap_write_unlock(cpu, mm)
    if error == 0 and flags & Mcl.CURRENT:
        __mm_populate(cpu, mm, 0, load(mm + MM.task_size), 1)
    return syscall_result(cpu, error)


@kernel
def sys_munlockall(cpu: int) -> int:
    """Unlock everything, and map nothing locked from now on."""
    count_vm_event(cpu, Event.CALL_MLOCK)
    mm = load(cpu + CPU.mm)
    vm_area_reserve(cpu)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    apply_mlockall_flags(cpu, mm, 0)
    mmap_write_unlock(cpu, mm)
    return 0
