# SPDX-License-Identifier: MIT
"""The floor: no lookup and no lock, the least that a fault can cost.

Takes a frame, clears it and writes the pte.  Nothing guards the commit, so it runs without
writers only, and with each page touched by one CPU.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE
from spfemu.mm.flags import FaultFlag, PageKind, Pte, VmFault
from spfemu.mm.page_alloc import alloc_zeroed_page, page_address
from spfemu.mm.pgtable import alloc_pmd, pte_offset, set_pte, table_alloc
from spfemu.mm.rss import inc_mm_counter_fast
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, store

READ_BITS = int(Pte.PRESENT | Pte.USER | Pte.ACCESSED | Pte.NX)
WRITE_BITS = READ_BITS | int(Pte.RW | Pte.DIRTY)


@kernel
def do_user_addr_fault(cpu: int, address: int, flags: int) -> int:
    """Map a frame or the zero page at `address`, whatever stands there; VM_FAULT_* bits."""
    mm = load(cpu + CPU.mm)
    slot = alloc_pmd(cpu, mm, address)
    if slot == 0:
        return VmFault.OOM
    pmd = read_once(slot)
    if pmd == 0:
        pmd = table_alloc(cpu, mm, slot)
        if pmd == 0:
            return VmFault.OOM
    pte = pte_offset(pmd, address)
    if (flags & FaultFlag.WRITE) == 0:
        set_pte(pte, load(cpu + CPU.zero_pfn) | READ_BITS | Pte.SPECIAL)
        count_vm_event(cpu, Event.ANON_ZERO_PAGE)
        return 0
    page = alloc_zeroed_page(cpu, PageKind.ANON)
    if page == 0:
        return VmFault.OOM
    inc_mm_counter_fast(cpu)
    store(page + PAGE.mapcount, 1)
    store(page + PAGE.mapping, 0)
    set_pte(pte, page_address(cpu, page) | WRITE_BITS)
    count_vm_event(cpu, Event.ANON_PAGE)
    return 0


@kernel
def pte_map_lock(cpu: int, vmf: int) -> int:
    """No fault of this protocol gets here; the shared handlers need a definition."""
    return 0


@kernel
def pte_spinlock(cpu: int, vmf: int) -> int:
    """No fault of this protocol gets here; the shared handlers need a definition."""
    return 0
