# SPDX-License-Identifier: MIT
"""A fault that has cleared a page does not look whether the entry is still empty.

Synthetic: pte_none is asked again under the lock because two threads may fault on one page.

The page of another thread, which has been written, is replaced and lost.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMA, VMF
from spfemu.mm.flags import VmFault
from spfemu.mm.memory import (
    WRITABLE,
    page_add_new_anon_rmap,
    put_new_page,
    vmf_alloc_zeroed_page,
    vmf_anon_vma_prepare,
)
from spfemu.mm.page_alloc import page_address
from spfemu.mm.pgtable import set_pte
from spfemu.mm.rss import inc_mm_counter_fast
from spfemu.mm.spinlock import spin_unlock
from spfemu.primitives import load
from spfemu.protocols.bare import pte_map_lock

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "two_writes_to_a_new_page"


@kernel
def do_anonymous_write(cpu: int, vmf: int) -> int:
    """Map over whatever is there."""
    result = vmf_anon_vma_prepare(cpu, vmf)
    if result != 0:
        return result
    vma = load(vmf + VMF.vma)
    page = vmf_alloc_zeroed_page(cpu, vmf)
    if pte_map_lock(cpu, vmf) == 0:
        put_new_page(cpu, page)
        return VmFault.RETRY
    inc_mm_counter_fast(cpu)
    page_add_new_anon_rmap(page, vma, load(vmf + VMF.address))
    set_pte(load(vmf + VMF.pte), page_address(cpu, page) | load(vma + VMA.vm_page_prot) | WRITABLE)
    spin_unlock(load(vmf + VMF.ptl))
    return 0
