# SPDX-License-Identifier: MIT
"""Speculative page faults plus one atomic up and down on a word of the VMA per fault.

The experiment by which Lespinasse judged designs that count or lock single VMAs: the same faults,
with the same checks, but all threads that fault in a VMA write one line of it.  He measured 62 %
less throughput at 48 threads.  The count means nothing; it has a line of its own.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, VMA
from spfemu.mm.flags import VmFault
from spfemu.mm.memory import access_error
from spfemu.mm.mmap_lock import mmap_seq_read_check, mmap_seq_read_start
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.vma import __find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import atomic_fetch_add_relaxed, load
from spfemu.protocols.spf import copy_pvma, do_handle_mm_fault, vma_can_speculate

EXTENDS = "spf"


@kernel
def do_speculative_fault(cpu: int, mm: int, address: int, flags: int) -> int:
    """Look the VMA up, count up, speculate, count down; results as those of `spf`.

    The VMA may be freed before the count goes down: its slot stays a VMA's, and the sum stays 0.
    """
    seq = mmap_seq_read_start(mm)
    if seq & 1:
        count_vm_event(cpu, Event.SPF_ABORT_ODD)
        return VmFault.RETRY
    rcu_read_lock(cpu)
    vma = __find_vma(cpu, mm, address)
    if vma == 0 or load(vma + VMA.vm_start) > address:
        rcu_read_unlock(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_UNMAPPED)
        return VmFault.RETRY
    if vma_can_speculate(vma, flags) == 0:
        rcu_read_unlock(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_NO_SPECULATE)
        return VmFault.RETRY
    atomic_fetch_add_relaxed(vma + VMA.fault_count, 1)
    copy_pvma(cpu + CPU.pvma, vma)
    rcu_read_unlock(cpu)
    result = speculate_on_copy(cpu, mm, address, flags, seq)
    atomic_fetch_add_relaxed(vma + VMA.fault_count, -1)
    return result


@kernel
def speculate_on_copy(cpu: int, mm: int, address: int, flags: int, seq: int) -> int:
    """Check the copy and go on with it, as do_speculative_fault of `spf` does."""
    if mmap_seq_read_check(cpu, mm, seq, Event.SPF_ABORT_VMA_COPY) == 0:
        return VmFault.RETRY
    if access_error(load(cpu + CPU.pvma + VMA.vm_flags), flags):
        count_vm_event(cpu, Event.SPF_ABORT_ACCESS_ERROR)
        return VmFault.RETRY
    return do_handle_mm_fault(cpu, mm, address, flags, seq)
