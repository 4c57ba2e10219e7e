# SPDX-License-Identifier: MIT
"""Which VMAs a userfaultfd context serves (Linux 5.12, fs/userfaultfd.c).

Write protection ends together with the registration, as since 6.0: no entry of a VMA without
Vm.UFFD_WP has the bit.  Protection is taken away under the mmap lock for writing, after the VMA has
its new flags.
"""

from enum import IntFlag

from spfemu.kernel import kernel, slowpath
from spfemu.layout import MM, USERFAULTFD_CTX, VMA
from spfemu.mm.flags import VM_UFFD_FLAGS, Errno, Vm
from spfemu.mm.fork import mmput
from spfemu.mm.mm_struct import mmget_not_zero
from spfemu.mm.mmap_lock import mmap_write_lock, mmap_write_unlock
from spfemu.mm.userfaultfd import (
    userfaultfd_ctx_put,
    userfaultfd_validate_range,
    wake_userfault,
)
from spfemu.mm.vma import find_vma, vm_area_reserve
from spfemu.mm.vma_modify import vma_modify_flags_uffd
from spfemu.mm.vma_write import vm_write_begin, vm_write_end, vma_start_write
from spfemu.mm.zap import MmCp, change_protection
from spfemu.primitives import load, write_once


class UffdMode(IntFlag):
    """What a registration asks for (UFFDIO_REGISTER_MODE_*)."""

    MISSING = 1
    WP = 2


UFFD_MODES = int(UffdMode.MISSING | UffdMode.WP)


@slowpath
def userfaultfd_register(cpu: int, ctx: int, start: int, length: int, mode: int) -> int:
    """Serve faults of [start, start + length) from now on; 0 or a negative errno.

    Holes stay holes.  A second registration by the same context adds to the first.
    """
    if mode == 0 or mode & ~UFFD_MODES:
        return -Errno.EINVAL
    set_flags = Vm.UFFD_MISSING if mode & UffdMode.MISSING else 0
    if mode & UffdMode.WP:
        set_flags = set_flags | Vm.UFFD_WP
    mm = load(ctx + USERFAULTFD_CTX.mm)
    error = userfaultfd_validate_range(mm, start, length)
    if error != 0:
        return error
    if mmget_not_zero(mm) == 0:
        return -Errno.ENOMEM
    vm_area_reserve(cpu)
    mmap_write_lock(cpu, mm)
    error = userfaultfd_check_vmas(cpu, mm, ctx, start, start + length)
    if error == 0:
        error = userfaultfd_modify(cpu, mm, ctx, start, start + length, set_flags)
    mmap_write_unlock(cpu, mm)
    mmput(cpu, mm)
    return error


@slowpath
def userfaultfd_unregister(cpu: int, ctx: int, start: int, length: int) -> int:
    """Serve no faults of the range any more and wake those that wait; 0 or a negative errno."""
    mm = load(ctx + USERFAULTFD_CTX.mm)
    error = userfaultfd_validate_range(mm, start, length)
    if error != 0:
        return error
    if mmget_not_zero(mm) == 0:
        return -Errno.ENOMEM
    vm_area_reserve(cpu)
    mmap_write_lock(cpu, mm)
    error = userfaultfd_check_vmas(cpu, mm, 0, start, start + length)
    if error == 0:
        error = userfaultfd_modify(cpu, mm, 0, start, start + length, 0)
    mmap_write_unlock(cpu, mm)
    mmput(cpu, mm)
    return error


@kernel
def userfaultfd_check_vmas(cpu: int, mm: int, ctx: int, start: int, end: int) -> int:
    """Check before the first change that all VMAs of the range can be served; 0 or an errno.

    For `ctx` 0, unregistering, it does not matter who serves them.
    """
    vma = find_vma(cpu, mm, start)
    if vma == 0:
        return -Errno.ENOMEM
    if load(vma + VMA.vm_start) >= end:
        return -Errno.EINVAL
    while vma != 0 and load(vma + VMA.vm_start) < end:
        if load(vma + VMA.vm_ops) != 0:
            return -Errno.EINVAL
        served = load(vma + VMA.vm_userfaultfd_ctx)
        if ctx != 0:
            if (load(vma + VMA.vm_flags) & Vm.MAYWRITE) == 0:
                return -Errno.EPERM
            if served != 0 and served != ctx:
                return -Errno.EBUSY
        vma = load(vma + VMA.vm_next)
    return 0


@kernel
def userfaultfd_modify(cpu: int, mm: int, ctx: int, start: int, end: int, set_flags: int) -> int:
    """Give the VMAs of [start, end) the context, or with 0 none; 0 or -ENOMEM with a part done."""
    vma = find_vma(cpu, mm, start)
    prev = 0
    if vma != 0:
        prev = vma if load(vma + VMA.vm_start) < start else load(vma + VMA.vm_prev)
    while vma != 0 and load(vma + VMA.vm_start) < end:
        part = load(vma + VMA.vm_start)
        part = part if part > start else start
        part_end = load(vma + VMA.vm_end)
        part_end = part_end if part_end < end else end
        vm_flags = load(vma + VMA.vm_flags) | set_flags
        if ctx == 0:
            vm_flags = vm_flags & ~VM_UFFD_FLAGS
        error, vma = userfaultfd_modify_vma(cpu, mm, prev, vma, part, part_end, vm_flags, ctx)
        if error != 0:
            return error
        prev = vma
        vma = load(vma + VMA.vm_next)
    return 0


@kernel
def userfaultfd_modify_vma(
    cpu: int, mm: int, prev: int, vma: int, start: int, end: int, vm_flags: int, ctx: int
) -> tuple[int, int]:
    """Give [start, end), part of `vma`, flags and context; (0, the VMA there) or (-ENOMEM, 0).

    Source: userfaultfd_clear_vma and its counterpart in userfaultfd_register.
    """
    old_flags = load(vma + VMA.vm_flags)
    served = load(vma + VMA.vm_userfaultfd_ctx)
    if served == ctx and old_flags == vm_flags:
        return 0, vma
    error, vma = vma_modify_flags_uffd(cpu, mm, prev, vma, start, end, vm_flags, ctx)
    if error != 0:
        return error, 0
    vma_start_write(cpu, vma)
    vm_write_begin(vma)
    write_once(vma + VMA.vm_flags, vm_flags)
    write_once(vma + VMA.vm_userfaultfd_ctx, ctx)
    if old_flags & ~vm_flags & Vm.UFFD_WP:
        change_protection(cpu, vma, start, end, MmCp.UFFD_WP_RESOLVE)
    vm_write_end(vma)
    if served != 0 and served != ctx:
        # they start afresh, wait for the mmap lock and find an ordinary VMA
        wake_userfault(cpu, served, start, end - start)
    return 0, vma


@slowpath
def userfaultfd_release(cpu: int, ctx: int) -> None:
    """Close a context: no VMA has it any more and nobody waits.

    `released` is set before all else: whoever finds a VMA with the context then does not wait, and
    whoever has queued itself before is woken at the end.
    """
    mm = load(ctx + USERFAULTFD_CTX.mm)
    write_once(ctx + USERFAULTFD_CTX.released, 1)
    if mmget_not_zero(mm):
        mmap_write_lock(cpu, mm)
        prev = 0
        vma = load(mm + MM.mmap)
        while vma != 0:
            if load(vma + VMA.vm_userfaultfd_ctx) == ctx:
                start, end = load(vma + VMA.vm_start), load(vma + VMA.vm_end)
                vm_flags = load(vma + VMA.vm_flags) & ~VM_UFFD_FLAGS
                # cannot fail: whole VMAs are at most merged
                _, vma = userfaultfd_modify_vma(cpu, mm, prev, vma, start, end, vm_flags, 0)
            prev = vma
            vma = load(vma + VMA.vm_next)
        mmap_write_unlock(cpu, mm)
        mmput(cpu, mm)
    wake_userfault(cpu, ctx, 0, 0)
    userfaultfd_ctx_put(cpu, ctx)
