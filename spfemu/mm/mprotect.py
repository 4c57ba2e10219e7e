# SPDX-License-Identifier: MIT
"""Changing access rights (Linux 5.12, mm/mprotect.c)."""

from spfemu.kernel import kernel
from spfemu.layout import MM, PAGE_MASK, PAGE_SHIFT, VMA
from spfemu.mm.config import CONFIG_LINUX_VERSION
from spfemu.mm.flags import Errno, Prot, Vm
from spfemu.mm.limits import may_expand_vm, vm_stat_account
from spfemu.mm.mmap import calc_vm_prot_bits, page_align, range_wraps
from spfemu.mm.populate import populate_vma_page_range
from spfemu.mm.versions import MPROTECT_DROPS_ACCOUNT
from spfemu.mm.vma import VM_ACCESS_FLAGS, find_vma, vm_get_page_prot
from spfemu.mm.vma_modify import vma_modify_flags
from spfemu.mm.vma_write import vm_write_begin, vm_write_end, vma_start_write
from spfemu.mm.zap import change_protection
from spfemu.primitives import load, write_once

PROT_SEM = 0x8
"""May be asked for and means nothing (include/uapi/asm-generic/mman-common.h)."""
PROT_GROWSDOWN = 0x01000000
"""The range reaches down to the start of the stack in which it begins."""
PROT_VALID = int(Prot.READ | Prot.WRITE | Prot.EXEC) | PROT_SEM


@kernel
def mprotect_fixup(
    cpu: int, mm: int, vma: int, prev: int, start: int, end: int, vm_flags: int
) -> tuple[int, int]:
    """Give [start, end), part of `vma`, new flags.

    Returns (0, the VMA that now ends the range or contains its end) or (-ENOMEM, 0).  Flags and
    page protection change before the page table does, so whoever reads the VMA and then finds an
    old entry knows better than the entry.
    """
    old_flags = load(vma + VMA.vm_flags)
    if old_flags == vm_flags:
        return 0, vma
    pages = (end - start) >> PAGE_SHIFT
    # becoming writable may be more than RLIMIT_DATA allows; staying so never is
    if may_expand_vm(mm, vm_flags, pages) == 0 and may_expand_vm(mm, old_flags, pages):
        return -Errno.ENOMEM, 0
    uncharged = Vm.ACCOUNT | Vm.WRITE | Vm.SHARED | Vm.NORESERVE
    if vm_flags & Vm.WRITE and (old_flags & uncharged) == 0:
        vm_flags = vm_flags | Vm.ACCOUNT
    elif CONFIG_LINUX_VERSION >= MPROTECT_DROPS_ACCOUNT:
        # once there may be pages, what was writable stays charged
        untouched = load(vma + VMA.vm_ops) == 0 and load(vma + VMA.anon_vma) == 0
        if (vm_flags & Vm.WRITE) == 0 and old_flags & Vm.ACCOUNT and untouched:
            vm_flags = vm_flags & ~Vm.ACCOUNT
    error, vma = vma_modify_flags(cpu, mm, prev, vma, start, end, vm_flags)
    if error != 0:
        return error, 0
    vm_stat_account(mm, old_flags, -pages)
    vm_stat_account(mm, vm_flags, pages)
    vma_start_write(cpu, vma)
    vm_write_begin(vma)
    write_once(vma + VMA.vm_flags, vm_flags)
    write_once(vma + VMA.vm_page_prot, vm_get_page_prot(vm_flags, load(vma + VMA.vm_ops)))
    change_protection(cpu, vma, start, end, 0)
    vm_write_end(vma)
    if vm_flags & Vm.WRITE and (old_flags & (Vm.WRITE | Vm.SHARED | Vm.LOCKED)) == Vm.LOCKED:
        # locked memory that can be written from now on is not to fault when it is
        populate_vma_page_range(cpu, vma, start, end, 0)
    return 0, vma


@kernel
def mprotect_range_end(mm: int, start: int, length: int) -> int:
    """Return the end of a range that does not wrap; beyond the address space it is cut.

    There it meets a hole anyway.
    """
    limit = load(mm + MM.task_size)
    return start + page_align(length if 0 <= length < limit else limit)


@kernel
def do_mprotect(cpu: int, mm: int, start: int, end: int, prot: int) -> int:
    """Change the access rights of [start, end); 0 or a negative errno.

    Stops with -ENOMEM at a hole, after doing the part before it.  Needs the mmap lock for
    writing.  Source: do_mprotect_pkey.
    """
    vma = find_vma(cpu, mm, start)
    if prot & PROT_GROWSDOWN:
        if vma == 0 or load(vma + VMA.vm_start) >= end:
            return -Errno.ENOMEM
        if (load(vma + VMA.vm_flags) & Vm.GROWSDOWN) == 0:
            return -Errno.EINVAL
        start = load(vma + VMA.vm_start)
    if vma == 0 or load(vma + VMA.vm_start) > start:
        return -Errno.ENOMEM
    prev = vma if load(vma + VMA.vm_start) < start else load(vma + VMA.vm_prev)
    while True:
        vm_flags = calc_vm_prot_bits(prot) | (load(vma + VMA.vm_flags) & ~VM_ACCESS_FLAGS)
        # each right has the bit that allows it four places higher
        if vm_flags & ~(vm_flags >> 4) & VM_ACCESS_FLAGS:
            return -Errno.EACCES
        part_end = load(vma + VMA.vm_end)
        part_end = part_end if part_end < end else end
        error, prev = mprotect_fixup(cpu, mm, vma, prev, start, part_end, vm_flags)
        if error != 0:
            return error
        start = load(prev + VMA.vm_end)
        start = start if start > part_end else part_end
        if start >= end:
            return 0
        vma = load(prev + VMA.vm_next)
        if vma == 0 or load(vma + VMA.vm_start) != start:
            return -Errno.ENOMEM


@kernel
def mprotect_check(start: int, length: int, prot: int) -> int:
    """Check what needs no lock: 0, -EINVAL or -ENOMEM."""
    if start & ~PAGE_MASK:
        return -Errno.EINVAL
    if length == 0:
        return 0
    if range_wraps(start, length):
        return -Errno.ENOMEM
    return -Errno.EINVAL if prot & ~(PROT_VALID | PROT_GROWSDOWN) else 0
