# SPDX-License-Identifier: MIT
"""A page is copied to another node before the TLBs are flushed.

Synthetic: what migration entries and flushes are for.

What another thread writes by its TLB meanwhile is lost.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE, VMF
from spfemu.mm.flags import PTE_ADDR_MASK
from spfemu.mm.page_alloc import page_address, put_page
from spfemu.mm.pgtable import set_pte
from spfemu.mm.spinlock import spin_unlock
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.primitives import copy_page, load, store, xchg

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "write_while_a_page_moves"
CONFIG = {"CONFIG_NUMA": 1}


@kernel
def migrate_page_locked(cpu: int, vmf: int, page: int, new: int) -> None:
    """Copy, then clear and flush."""
    pte = load(vmf + VMF.pte)
    copy_page(page_address(cpu, new), page_address(cpu, page))
    entry = xchg(pte, 0)
    flush_tlb_mm(cpu, load(cpu + CPU.mm))
    store(new + PAGE.flags, load(page + PAGE.flags))
    store(new + PAGE.mapping, load(page + PAGE.mapping))
    store(new + PAGE.index, load(page + PAGE.index))
    store(new + PAGE.mapcount, 1)
    set_pte(pte, (entry & ~PTE_ADDR_MASK) | page_address(cpu, new))
    store(page + PAGE.mapcount, 0)
    spin_unlock(load(vmf + VMF.ptl))
    put_page(cpu, page)
