# SPDX-License-Identifier: MIT
"""COMMIT_RIGHTS: at the moment of commit the entry lies inside a live VMA that allows the access.

The moment is when the gate lets a fault go on, with the page-table lock held.  The mm's VMAs are
looked up as they are; if its sequence count was even and has not moved meanwhile, that was the
truth.  A writer that has entered since is not waited for: it has to take the lock that is held
here before it changes an entry.  What slips through so is seen when tables are freed: an entry
there was made by somebody who had no right to it any more.
"""

from spfemu.kernel import around, kernel, proceed
from spfemu.layout import CPU, MM, PAGE_SIZE, VMA, VMF, WORD
from spfemu.mm.flags import FaultFlag, Vm
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.mm.page_alloc import page_address
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.primitives import load, read_once, smp_load_acquire, smp_rmb
from spfemu.stress.promises import Promise
from spfemu.stress.violation import stress_violation

DEPTH_MAX = 64
"""No tree of VMAs is as deep; one that is being rotated may send a walk in circles."""


@kernel
def vma_in_tree(mm: int, address: int) -> int:
    """Find the VMA that covers an address in a tree that may change; 0 if it is not found."""
    node = read_once(mm + MM.mm_rb)
    for _ in range(DEPTH_MAX):
        if node == 0:
            return 0
        if read_once(node + VMA.vm_end) <= address:
            node = read_once(node + VMA.rb_right)
        elif read_once(node + VMA.vm_start) > address:
            node = read_once(node + VMA.rb_left)
        else:
            return node
    return 0


@kernel
def commit_is_allowed(cpu: int, vmf: int) -> int:
    """Tell whether the fault may commit, by what the mm has now; 1 if a writer is in the way."""
    mm = load(cpu + CPU.mm)
    address = load(vmf + VMF.address)
    seq = smp_load_acquire(mmap_seq_addr(mm))
    if seq & 1:
        return 1
    rcu_read_lock(cpu)
    vma = vma_in_tree(mm, address)
    allowed = 0
    if vma != 0:
        need = Vm.WRITE if load(vmf + VMF.flags) & FaultFlag.WRITE else Vm.READ | Vm.WRITE | Vm.EXEC
        allowed = load(vma + VMA.vm_flags) & need != 0
    rcu_read_unlock(cpu)
    smp_rmb()
    return allowed or read_once(mmap_seq_addr(mm)) != seq


@kernel
def judge_commit(cpu: int, vmf: int) -> None:
    """See that a fault which has passed the gate may commit.

    A touch from inside the kernel (populate, pins) works on another mm now and then, and is
    under that one's mmap lock.
    """
    vma = load(vmf + VMF.vma)
    if load(vma + VMA.vm_mm) != load(cpu + CPU.mm):
        return
    if commit_is_allowed(cpu, vmf) == 0:
        stress_violation(Promise.COMMIT_RIGHTS, load(vmf + VMF.address), vma)


@around
def pte_map_lock(cpu: int, vmf: int) -> int:
    """Judge a fault that is about to fill an entry."""
    locked: int = proceed(cpu, vmf)
    if locked:
        judge_commit(cpu, vmf)
    return locked


@around
def pte_spinlock(cpu: int, vmf: int) -> int:
    """Judge a fault that is about to change an entry."""
    locked: int = proceed(cpu, vmf)
    if locked:
        judge_commit(cpu, vmf)
    return locked


@around
def free_table_now(cpu: int, page: int) -> None:
    """See that nobody has put an entry into a table that was unlinked as empty."""
    table = page_address(cpu, page)
    for i in range(PAGE_SIZE // WORD):
        entry = read_once(table + i * WORD)
        if entry != 0:
            stress_violation(Promise.COMMIT_RIGHTS, table + i * WORD, entry)
    proceed(cpu, page)
