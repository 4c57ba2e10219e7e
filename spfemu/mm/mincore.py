# SPDX-License-Identifier: MIT
"""Which pages are resident (Linux 6.18, mm/mincore.c)."""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SIZE, VMA, WORD
from spfemu.mm.flags import Errno
from spfemu.mm.i_mmap import vma_mapping
from spfemu.mm.memory import linear_page_index
from spfemu.mm.pgtable import lookup_pte, pte_present
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.swap_state import swap_slot_cached
from spfemu.mm.swapops import is_swap_pte, pte_to_swp_entry
from spfemu.mm.vma import find_vma
from spfemu.mm.xarray import xa_load
from spfemu.primitives import load, store


@kernel
def mincore_page(cpu: int, vma: int, address: int) -> int:
    """Tell whether the page of `address` is mapped, or in the swap cache or that of its file."""
    entry = lookup_pte(load(vma + VMA.vm_mm), address)
    if is_swap_pte(entry):
        return swap_slot_cached(cpu, pte_to_swp_entry(entry))
    if pte_present(entry):
        return 1
    mapping = vma_mapping(vma)
    if mapping == 0:
        return 0
    rcu_read_lock(cpu)
    page = xa_load(cpu, mapping, linear_page_index(vma, address))
    rcu_read_unlock(cpu)
    return page != 0


@kernel
def do_mincore(cpu: int, mm: int, start: int, end: int, vec: int) -> int:
    """Fill `vec` (0: nowhere), a word per page of [start, end); 0, or -ENOMEM at a hole.

    Needs the mmap lock for reading.
    """
    address = start
    while address < end:
        vma = find_vma(cpu, mm, address)
        if vma == 0 or load(vma + VMA.vm_start) > address:
            return -Errno.ENOMEM
        stop = load(vma + VMA.vm_end)
        stop = stop if stop < end else end
        while vec != 0 and address < stop:
            store(vec, mincore_page(cpu, vma, address))
            vec += WORD
            address += PAGE_SIZE
        address = stop
    return 0
