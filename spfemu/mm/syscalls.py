# SPDX-License-Identifier: MIT
"""System calls on memory: arguments checked, the mmap lock taken, the result counted.

Results are Linux's (5.12): 0 or an address, else a negative errno.  -EINTR means that the wait
for the mmap lock was ended by a fatal signal.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM
from spfemu.mm.flags import PAGE_MASK, PAGE_SHIFT, Errno, Madv, Map, Vm
from spfemu.mm.khugepaged import madvise_collapse
from spfemu.mm.madvise import (
    do_madvise,
    madvise_check,
    madvise_need_mmap_write,
    madvise_range_end,
    madvise_remove,
)
from spfemu.mm.mincore import do_mincore
from spfemu.mm.mmap import do_brk, do_mmap, do_munmap, mmap_populates, page_align
from spfemu.mm.mmap_lock import (
    mmap_read_lock,
    mmap_read_unlock,
    mmap_write_lock_killable,
    mmap_write_unlock,
)
from spfemu.mm.mprotect import do_mprotect, mprotect_check, mprotect_range_end
from spfemu.mm.populate import __mm_populate, madvise_populate
from spfemu.mm.vma import vm_area_reserve
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load


@kernel
def syscall_result(cpu: int, result: int) -> int:
    """Count a call that failed; returns `result`."""
    if result < 0:
        count_vm_event(cpu, Event.CALL_FAILED)
    return result


@kernel
def sys_mmap(cpu: int, addr: int, length: int, prot: int, flags: int) -> int:
    """Map anonymous memory; returns its address, or -EBADF without MAP_ANONYMOUS."""
    return ksys_mmap(cpu, addr, length, prot, flags, 0, 0)


@kernel
def sys_mmap_file(
    cpu: int, addr: int, length: int, prot: int, flags: int, file: int, offset: int
) -> int:
    """Map `file` (0: no descriptor) from `offset` on [bytes]; returns the address."""
    if offset & ~PAGE_MASK:
        count_vm_event(cpu, Event.CALL_MMAP)
        return syscall_result(cpu, -Errno.EINVAL)
    file = 0 if flags & Map.ANONYMOUS else file
    return ksys_mmap(cpu, addr, length, prot, flags, file, offset >> PAGE_SHIFT)


@kernel
def ksys_mmap(
    cpu: int, addr: int, length: int, prot: int, flags: int, file: int, pgoff: int
) -> int:
    """Map and populate; returns the address or a negative errno (ksys_mmap_pgoff)."""
    count_vm_event(cpu, Event.CALL_MMAP)
    if (flags & Map.ANONYMOUS) == 0 and file == 0:
        return syscall_result(cpu, -Errno.EBADF)
    vm_area_reserve(cpu)
    mm = load(cpu + CPU.mm)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    result = do_mmap(cpu, mm, addr, length, prot, flags, file, pgoff)
    populates = mmap_populates(mm, flags)
    mmap_write_unlock(cpu, mm)
    if populates and result >= 0:
        __mm_populate(cpu, mm, result, page_align(length), 1)
    return syscall_result(cpu, result)


@kernel
def sys_munmap(cpu: int, addr: int, length: int) -> int:
    """Unmap all pages of a range, mapped or not."""
    count_vm_event(cpu, Event.CALL_MUNMAP)
    vm_area_reserve(cpu)
    mm = load(cpu + CPU.mm)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    return syscall_result(cpu, mmap_unlock_after(cpu, mm, do_munmap(cpu, mm, addr, length, 1)))


@kernel
def mmap_unlock_after(cpu: int, mm: int, result: int) -> int:
    """Release the mmap lock in the mode that do_munmap or do_brk has left; returns 0 or errno."""
    if result == 1:
        mmap_read_unlock(cpu, mm)
        return 0
    mmap_write_unlock(cpu, mm)
    return result


@kernel
def sys_mprotect(cpu: int, addr: int, length: int, prot: int) -> int:
    """Change the access rights of a range."""
    count_vm_event(cpu, Event.CALL_MPROTECT)
    error = mprotect_check(addr, length, prot)
    if error != 0 or length == 0:
        return syscall_result(cpu, error)
    mm = load(cpu + CPU.mm)
    end = mprotect_range_end(mm, addr, length)
    vm_area_reserve(cpu)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    error = do_mprotect(cpu, mm, addr, end, prot)
    mmap_write_unlock(cpu, mm)
    return syscall_result(cpu, error)


@kernel
def sys_madvise(cpu: int, addr: int, length: int, advice: int) -> int:
    """Advise about a range of memory; 0 or a negative errno."""
    count_vm_event(cpu, Event.CALL_MADVISE)
    error = madvise_check(addr, length, advice)
    if error != 0 or length == 0:
        return syscall_result(cpu, error)
    mm = load(cpu + CPU.mm)
    end = madvise_range_end(mm, addr, length)
    if advice == Madv.POPULATE_READ or advice == Madv.POPULATE_WRITE:
        error = madvise_populate(cpu, mm, addr, end, advice == Madv.POPULATE_WRITE)
    elif advice == Madv.REMOVE:
        error = madvise_remove(cpu, mm, addr, end)
    elif advice == Madv.COLLAPSE:
        error = madvise_collapse(cpu, mm, addr, end)
    elif madvise_need_mmap_write(advice):
        vm_area_reserve(cpu)
        if mmap_write_lock_killable(cpu, mm) != 0:
            return syscall_result(cpu, -Errno.EINTR)
        error = do_madvise(cpu, mm, addr, end, advice)
        mmap_write_unlock(cpu, mm)
    else:
        mmap_read_lock(cpu, mm)
        error = do_madvise(cpu, mm, addr, end, advice)
        mmap_read_unlock(cpu, mm)
    return syscall_result(cpu, error)


@kernel
def sys_brk(cpu: int, brk: int) -> int:
    """Move the end of the heap; returns where it is then, which is `brk` if that worked.

    Below the start of the heap the call only asks and does not count as failed.
    """
    count_vm_event(cpu, Event.CALL_BRK)
    vm_area_reserve(cpu)
    mm = load(cpu + CPU.mm)
    if mmap_write_lock_killable(cpu, mm) != 0:
        return syscall_result(cpu, -Errno.EINTR)
    # a negative one lies beyond the address space
    if 0 <= brk < load(mm + MM.start_brk):
        old_brk = load(mm + MM.brk)
        mmap_write_unlock(cpu, mm)
        return old_brk
    old_brk = load(mm + MM.brk)
    beyond = brk < 0 or brk > load(mm + MM.task_size)
    result = -Errno.ENOMEM if beyond else do_brk(cpu, mm, brk)
    populates = load(mm + MM.def_flags) & Vm.LOCKED
    error = syscall_result(cpu, mmap_unlock_after(cpu, mm, result))
    if error < 0:
        return old_brk
    if populates and page_align(brk) > page_align(old_brk):
        start = page_align(old_brk)
        __mm_populate(cpu, mm, start, page_align(brk) - start, 1)
    return brk


@kernel
def sys_mincore(cpu: int, addr: int, length: int, vec: int) -> int:
    """Say which pages of a range are resident; 0 or a negative errno.

    `vec` is the address of a word per page in the segment or, 0, nowhere.  -ENOMEM at a hole, with
    the pages before it told.
    """
    count_vm_event(cpu, Event.CALL_MINCORE)
    mm = load(cpu + CPU.mm)
    if addr & ~PAGE_MASK:
        return syscall_result(cpu, -Errno.EINVAL)
    limit = load(mm + MM.task_size)
    if addr < 0 or addr > limit or length < 0 or length > limit - addr:
        return syscall_result(cpu, -Errno.ENOMEM)
    mmap_read_lock(cpu, mm)
    error = do_mincore(cpu, mm, addr, addr + page_align(length), vec)
    mmap_read_unlock(cpu, mm)
    return syscall_result(cpu, error)
