# SPDX-License-Identifier: MIT
"""What an address space may hold and how much of it there is (Linux 6.18, mm/vma.c, mm/mmap.c).

Limits are in the mm rather than in a process, of which there is none; RLIM_INFINITY for
RLIMIT_MEMLOCK also stands for CAP_IPC_LOCK.  All of it needs the mmap lock for writing.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, PAGE_SHIFT
from spfemu.mm.flags import RLIM_INFINITY, Errno, Vm
from spfemu.primitives import load, store

VM_LOCKED_MASK = int(Vm.LOCKED | Vm.LOCKONFAULT)


@kernel
def is_data_mapping(vm_flags: int) -> int:
    """Tell whether RLIMIT_DATA is about a mapping: private, writable, no stack."""
    return (vm_flags & (Vm.WRITE | Vm.SHARED | Vm.GROWSDOWN)) == Vm.WRITE


@kernel
def vm_stat_account(mm: int, vm_flags: int, pages: int) -> None:
    """Count `pages` more (or, if negative, less) of mappings with these flags."""
    store(mm + MM.total_vm, load(mm + MM.total_vm) + pages)
    if is_data_mapping(vm_flags):
        store(mm + MM.data_vm, load(mm + MM.data_vm) + pages)
    elif vm_flags & Vm.GROWSDOWN:
        store(mm + MM.stack_vm, load(mm + MM.stack_vm) + pages)
    if vm_flags & Vm.LOCKED:
        store(mm + MM.locked_vm, load(mm + MM.locked_vm) + pages)


@kernel
def may_expand_vm(mm: int, vm_flags: int, pages: int) -> int:
    """Tell whether RLIMIT_AS and RLIMIT_DATA allow `pages` more with these flags."""
    if load(mm + MM.total_vm) + pages > load(mm + MM.rlimit_as) >> PAGE_SHIFT:
        return 0
    if is_data_mapping(vm_flags):
        return load(mm + MM.data_vm) + pages <= load(mm + MM.rlimit_data) >> PAGE_SHIFT
    return 1


@kernel
def can_do_mlock(mm: int) -> int:
    """Tell whether the process may lock anything at all."""
    return load(mm + MM.rlimit_memlock) != 0


@kernel
def mlock_future_ok(mm: int, vm_flags: int, pages: int) -> int:
    """Tell whether `pages` more with these flags keep to RLIMIT_MEMLOCK."""
    if (vm_flags & Vm.LOCKED) == 0 or load(mm + MM.rlimit_memlock) == RLIM_INFINITY:
        return 1
    return load(mm + MM.locked_vm) + pages <= load(mm + MM.rlimit_memlock) >> PAGE_SHIFT


@kernel
def mlock_error(mm: int, vm_flags: int, pages: int) -> int:
    """Return -EAGAIN if `pages` more with these flags would be too many locked ones, else 0."""
    return 0 if mlock_future_ok(mm, vm_flags, pages) else -Errno.EAGAIN
