# SPDX-License-Identifier: MIT
"""Entry of a page fault and the classical path (Linux 5.12, arch/x86/mm/fault.c)."""

from typing import TYPE_CHECKING

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE_MASK, VMA
from spfemu.mm.config import CONFIG_FAULT_OVERHEAD, CONFIG_LATENCY
from spfemu.mm.flags import Errno, FaultFlag, VmFault
from spfemu.mm.latency import FAULT_LATENCY, record_latency
from spfemu.mm.memory import access_error, handle_mm_fault
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_trylock, mmap_read_unlock
from spfemu.mm.stack import expand_stack
from spfemu.mm.vma import find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import cpu_relax, load, read_cycles, read_once

if TYPE_CHECKING:  # defined by the protocol
    from spfemu.protocols.classic import do_user_addr_fault


@kernel
def handle_page_fault(cpu: int, address: int, flags: int) -> int:
    """Take a fault from user mode; returns 0 or a negative errno.

    -EFAULT stands for SIGSEGV, -EIO for SIGBUS, -ENOMEM for out of memory; -EINTR: a fatal signal
    ended the wait for something.
    """
    count_vm_event(cpu, Event.PGFAULT)
    count_vm_event(cpu, Event.FAULT_WRITE if flags & FaultFlag.WRITE else Event.FAULT_READ)
    started = 0
    if CONFIG_LATENCY:
        started = read_cycles()
    if CONFIG_FAULT_OVERHEAD:
        spin_overhead(cpu)
    result = do_user_addr_fault(cpu, address & PAGE_MASK, flags)
    if CONFIG_LATENCY:
        record_latency(cpu, FAULT_LATENCY, read_cycles() - started)
    if result == 0:
        return 0
    if result & VmFault.OOM:
        count_vm_event(cpu, Event.FAULT_OOM)
        return -Errno.ENOMEM
    if result & VmFault.SIGBUS:
        count_vm_event(cpu, Event.FAULT_SIGBUS)
        return -Errno.EIO
    return -Errno.EINTR if result & VmFault.RETRY else -Errno.EFAULT


@slowpath
def spin_overhead(cpu: int) -> None:
    """Spend the time of the exception entry and of what else the emulator leaves out."""
    end = read_cycles() + load(cpu + CPU.fault_overhead)
    while read_cycles() < end:
        cpu_relax()


@kernel
def do_locked_fault(cpu: int, address: int, flags: int) -> int:
    """Handle a fault classically, under the mmap read lock; returns VM_FAULT_* bits.

    Nothing of a speculative attempt is reused.  A fault that has to wait for something lets go of
    the lock for that, and starts afresh (VM_FAULT_RETRY); RETRY is returned only if a fatal signal
    ended the wait.
    """
    count_vm_event(cpu, Event.FAULT_CLASSIC)
    flags = flags | FaultFlag.ALLOW_RETRY
    while True:
        result = fault_under_mmap_lock(cpu, address, flags)
        if (result & VmFault.RETRY) == 0 or read_once(cpu + CPU.fatal_signal) != 0:
            return result
        flags = flags | FaultFlag.TRIED


@kernel
def fault_under_mmap_lock(cpu: int, address: int, flags: int) -> int:
    """Look the VMA up under the mmap lock and handle the fault; returns VM_FAULT_* bits.

    The lock is released on return; with RETRY, whoever returned that has released it.
    """
    mm = load(cpu + CPU.mm)
    if mmap_read_trylock(cpu, mm) == 0:
        mmap_read_lock(cpu, mm)
    vma = find_vma(cpu, mm, address)
    if vma != 0 and load(vma + VMA.vm_start) > address:
        vma = expand_stack(cpu, mm, vma, address)
    if vma == 0:
        mmap_read_unlock(cpu, mm)
        count_vm_event(cpu, Event.FAULT_SIGSEGV_MAPERR)
        return VmFault.SIGSEGV
    if access_error(load(vma + VMA.vm_flags), flags):
        mmap_read_unlock(cpu, mm)
        count_vm_event(cpu, Event.FAULT_SIGSEGV_ACCERR)
        return VmFault.SIGSEGV
    result = handle_mm_fault(cpu, mm, vma, address, flags)
    if (result & VmFault.RETRY) == 0:
        mmap_read_unlock(cpu, mm)
    return result
