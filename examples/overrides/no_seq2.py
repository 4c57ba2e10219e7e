# SPDX-License-Identifier: MIT
"""The commit gate without its last check: a writer that enters inside the gate goes unnoticed."""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, VMF
from spfemu.mm.mmap_lock import mmap_seq_read_check
from spfemu.mm.pgtable import pte_lockptr, pte_offset
from spfemu.mm.spinlock import spin_trylock
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, store
from spfemu.protocols.spf import speculative_page_walk_begin, speculative_page_walk_end


@kernel
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    """Commit as spf does, but without PTE_MAP_LOCK_SEQ2."""
    mm = load(cpu + CPU.mm)
    speculative_page_walk_begin(cpu)
    if mmap_seq_read_check(cpu, mm, load(vmf + VMF.seq), Event.SPF_ABORT_PTE_MAP_LOCK_SEQ1) == 0:
        speculative_page_walk_end(cpu)
        return 0
    pmd = read_once(load(vmf + VMF.pmd))
    if pmd != load(vmf + VMF.orig_pmd):
        speculative_page_walk_end(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_PTE_MAP_LOCK_PMD)
        return 0
    ptl = pte_lockptr(cpu, pmd)
    if spin_trylock(cpu, ptl) == 0:
        speculative_page_walk_end(cpu)
        count_vm_event(cpu, Event.SPF_ABORT_PTE_MAP_LOCK_PTL)
        return 0
    speculative_page_walk_end(cpu)
    store(vmf + VMF.pte, pte_offset(pmd, load(vmf + VMF.address)))
    store(vmf + VMF.ptl, ptl)
    return 1
