# SPDX-License-Identifier: MIT
"""UNSAFE, an exhibit: speculative page faults that commit if the VMA looks the same as before.

In the gate of `spf`, "no writer has run" becomes "the VMA at this address is like the copy, and
the tables are those of the walk".  Writers elsewhere no longer abort a fault.  But equal is not
unchanged: between the two looks the VMA may have changed and changed back.  Lespinasse named
copy-on-write as what breaks (30 April 2021), with a page P shared with another process:

    A1 begins to copy P      the other process lets go of P
                             A2 finds P mapped once, makes it writable in place, writes
                             A2 protects the range and allows writing again: same VMA, same pte
    A1 maps its old copy     and A2's write is lost

It takes a kernel that goes by the number of mappings when it lets a page be written in place, as
Linux did up to 5.8, and so does this protocol.  Going by references, as since 5.9, the one of A1
makes A2 copy, and this order does no harm.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE, VMA, VMF
from spfemu.mm.memory import linear_page_index
from spfemu.mm.mmap_lock import mmap_seq_read_check, mmap_seq_read_start
from spfemu.mm.pgtable import find_pmd, pte_lockptr, pte_offset
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.spinlock import spin_trylock, spin_unlock
from spfemu.mm.vma import __find_vma
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, smp_load_acquire, store
from spfemu.protocols.spf import speculative_page_walk_begin, speculative_page_walk_end

EXTENDS = "spf"


@kernel
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    """The commit gate with two precise checks; 1 with the lock held, or 0 and a reason counted."""
    speculative_page_walk_begin(cpu)
    if speculation_holds(cpu, vmf, Event.SPF_ABORT_PTE_MAP_LOCK_SEQ1) == 0:
        speculative_page_walk_end(cpu)
        return 0
    if tables_look_unchanged(cpu, vmf) == 0:
        speculative_page_walk_end(cpu)
        return 0
    pmd = load(vmf + VMF.orig_pmd)
    ptl = pte_lockptr(cpu, pmd)
    if spin_trylock(cpu, ptl) == 0:
        speculative_page_walk_end(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_PTE_MAP_LOCK_PTL)
        return 0
    if speculation_holds(cpu, vmf, Event.SPF_ABORT_PTE_MAP_LOCK_SEQ2) == 0:
        spin_unlock(ptl)
        speculative_page_walk_end(cpu)
        return 0
    if tables_look_unchanged(cpu, vmf) == 0:
        spin_unlock(ptl)
        speculative_page_walk_end(cpu)
        return 0
    speculative_page_walk_end(cpu)
    store(vmf + VMF.pte, pte_offset(pmd, load(vmf + VMF.address)))
    store(vmf + VMF.ptl, ptl)
    return 1


@kernel
def speculation_holds(cpu: int, vmf: int, reason: int) -> int:
    """Look the VMA up again and compare it with the copy; returns 0 and counts `reason` if not.

    The sequence count only tells whether this lookup can be trusted.
    """
    mm = load(cpu + CPU.mm)
    address = load(vmf + VMF.address)
    seq = mmap_seq_read_start(mm)
    same = 0
    if seq & 1 == 0:
        rcu_read_lock(cpu)
        vma = __find_vma(cpu, mm, address)
        if vma != 0:
            same = vma_is_like(vma, cpu + CPU.pvma, address)
        rcu_read_unlock(cpu)
    if same == 0:
        count_vm_event(cpu, reason)
        return 0
    return mmap_seq_read_check(cpu, mm, seq, reason)


@kernel
def vma_is_like(vma: int, pvma: int, address: int) -> int:
    """Compare all that a fault at `address` depends on."""
    if load(vma + VMA.vm_start) > address:
        return 0
    if linear_page_index(vma, address) != linear_page_index(pvma, address):
        return 0
    if load(vma + VMA.vm_file) != load(pvma + VMA.vm_file):
        return 0
    if load(vma + VMA.vm_page_prot) != load(pvma + VMA.vm_page_prot):
        return 0
    if load(vma + VMA.anon_vma) != load(pvma + VMA.anon_vma):
        return 0
    return load(vma + VMA.vm_flags) == load(pvma + VMA.vm_flags)


@kernel
def tables_look_unchanged(cpu: int, vmf: int) -> int:
    """Walk again and compare; returns 0 and counts why if the walk leads elsewhere."""
    slot = find_pmd(load(cpu + CPU.mm), load(vmf + VMF.address))
    if slot != 0 and slot == load(vmf + VMF.pmd):
        if read_once(slot) == load(vmf + VMF.orig_pmd):
            return 1
    count_vm_event(cpu, Event.SPF_ABORT_PTE_MAP_LOCK_PMD)
    return 0


@kernel
def wp_can_reuse(page: int) -> int:
    """Tell whether a page may be written in place: it is mapped once (5.8: reuse_swap_page)."""
    return smp_load_acquire(page + PAGE.mapcount) == 1
