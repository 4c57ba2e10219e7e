# SPDX-License-Identifier: MIT
"""Stacks grow downwards when they are touched below their start (mm/mmap.c: expand_stack).

As since Linux 6.5 a stack grows under the mmap lock for writing.  5.12 moved vm_start and then
vm_pgoff under the lock for reading, which mmap_seq does not notice: a speculative fault could have
copied one without the other.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import MM, PAGE_SHIFT, VMA
from spfemu.mm.flags import STACK_GUARD_GAP, Vm
from spfemu.mm.limits import may_expand_vm, mlock_future_ok, vm_stat_account
from spfemu.mm.mmap_lock import (
    mmap_read_unlock,
    mmap_write_downgrade,
    mmap_write_lock,
)
from spfemu.mm.rmap import anon_vma_prepare
from spfemu.mm.vma import VM_ACCESS_FLAGS, find_vma, vma_expand_down
from spfemu.mm.vma_write import vm_write_begin, vm_write_end, vma_start_write
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load


@kernel
def expand_stack(cpu: int, mm: int, vma: int, address: int) -> int:
    """Let `vma`, which starts above `address`, grow down to it; returns the VMA there, or 0.

    The mmap lock is held for reading, and again when this returns; in between it may have been
    released, so that `vma` and all else may have changed.
    """
    if (load(vma + VMA.vm_flags) & Vm.GROWSDOWN) == 0:
        return 0
    return expand_stack_slowpath(cpu, mm, address)


@slowpath
def expand_stack_slowpath(cpu: int, mm: int, address: int) -> int:
    """Take the lock for writing, look again, and grow what is there."""
    mmap_read_unlock(cpu, mm)
    mmap_write_lock(cpu, mm)
    vma = find_vma(cpu, mm, address)
    if vma != 0 and load(vma + VMA.vm_start) > address:
        if expand_downwards(cpu, mm, vma, address) == 0:
            vma = 0
    mmap_write_downgrade(cpu, mm)
    return vma


@kernel
def expand_downwards(cpu: int, mm: int, vma: int, address: int) -> int:
    """Move the start of a stack down to `address`; 1, or 0 if something is in the way.

    That is another mapping within the guard gap, a limit, or lack of memory.
    """
    vm_flags = load(vma + VMA.vm_flags)
    if (vm_flags & Vm.GROWSDOWN) == 0 or address < load(mm + MM.mmap_min_addr):
        return 0
    prev = load(vma + VMA.vm_prev)
    if prev != 0:
        prev_flags = load(prev + VMA.vm_flags)
        guarded = (prev_flags & Vm.GROWSDOWN) == 0 and prev_flags & VM_ACCESS_FLAGS
        if guarded and address - load(prev + VMA.vm_end) < STACK_GUARD_GAP:
            return 0
    # before the limits are looked at, as in the kernel: it decides what can be merged later
    vma_start_write(cpu, vma)
    if anon_vma_prepare(cpu, vma) != 0:
        return 0
    pages = (load(vma + VMA.vm_start) - address) >> PAGE_SHIFT
    if pages > load(vma + VMA.vm_pgoff) or may_expand_vm(mm, vm_flags, pages) == 0:
        return 0
    if load(vma + VMA.vm_end) - address > load(mm + MM.rlimit_stack):
        return 0
    if mlock_future_ok(mm, vm_flags, pages) == 0:
        return 0
    vm_write_begin(vma)
    vma_expand_down(vma, address)
    vm_write_end(vma)
    vm_stat_account(mm, vm_flags, pages)
    count_vm_event(cpu, Event.STACK_GROWN)
    return 1
