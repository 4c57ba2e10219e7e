# SPDX-License-Identifier: MIT
"""COMMIT_RIGHTS: at the moment of commit the entry lies inside a live VMA that allows the access.

The moment is when the fault gets the page-table lock: a writer that enters later has to take that
lock before it changes an entry.  The mm's VMAs are looked up as they are then; if its sequence
count was even and has not moved meanwhile, that was the truth.  What a writer inside hides so is
seen when tables are freed: an entry there was made by somebody who had no right to it any more.
"""

from spfemu.kernel import around, kernel, proceed
from spfemu.layout import CPU, MM, PAGE_SIZE, STRESS_CPU, VMA, VMF, WORD
from spfemu.mm.flags import FaultFlag, Vm
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.mm.page_alloc import page_address
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.primitives import load, read_once, smp_load_acquire, smp_rmb, store
from spfemu.stress.promises import Promise
from spfemu.stress.violation import stress_violation

IN_GATE = 2
"""STRESS_CPU.commit_denied while the gate has not locked yet."""
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
def commit_is_denied(cpu: int, vmf: int) -> int:
    """Tell whether a fault that has just taken the page-table lock must not commit.

    A touch from inside the kernel (populate, pins) works on another mm now and then, and is
    under that one's mmap lock.
    """
    if load(load(vmf + VMF.vma) + VMA.vm_mm) != load(cpu + CPU.mm):
        return 0
    return commit_is_allowed(cpu, vmf) == 0


@around
def spin_trylock(cpu: int, lock: int) -> int:
    """Judge a speculative fault when it gets the page-table lock; the gate may still refuse it."""
    locked: int = proceed(cpu, lock)
    denied = load(cpu + CPU.stress) + STRESS_CPU.commit_denied
    if locked and load(denied) == IN_GATE:
        store(denied, commit_is_denied(cpu, cpu + CPU.vmf))
    return locked


@around
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    """See that the gate refuses a fault that must not commit."""
    denied = load(cpu + CPU.stress) + STRESS_CPU.commit_denied
    store(denied, IN_GATE)
    passed: int = proceed(cpu, vmf)
    result = load(denied)
    store(denied, 0)
    if passed and result == 1:
        stress_violation(Promise.COMMIT_RIGHTS, load(vmf + VMF.address), load(vmf + VMF.vma))
    return passed


@around
def pte_map_lock_nonspec(cpu: int, vmf: int) -> int:
    """Judge a fault that has locked its VMA, or the mm, before: nobody can have changed it."""
    locked: int = proceed(cpu, vmf)
    if locked and commit_is_denied(cpu, vmf):
        stress_violation(Promise.COMMIT_RIGHTS, load(vmf + VMF.address), load(vmf + VMF.vma))
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
