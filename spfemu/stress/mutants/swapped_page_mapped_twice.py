# SPDX-License-Identifier: MIT
"""A fault maps the page that it has brought back without looking at its entry again.

Synthetic: pte_same in do_swap_page. Two threads may want the page.

It is counted twice, and its slot is given back twice.
"""

from spfemu.kernel import kernel
from spfemu.layout import VMF
from spfemu.mm.flags import VmFault
from spfemu.mm.memory import pte_map_lock_nonspec
from spfemu.mm.page_alloc import put_page
from spfemu.mm.page_lock import lock_page_or_retry
from spfemu.mm.swap_fault import map_swap_page, swapin_page
from spfemu.mm.swapops import pte_to_swp_entry
from spfemu.primitives import load

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "two_bring_back_one_page"


@kernel
def do_swap_page(cpu: int, vmf: int) -> int:
    """Map whatever has become of the entry."""
    entry = pte_to_swp_entry(load(vmf + VMF.orig_pte))
    page = swapin_page(cpu, entry)
    if page <= 0:
        return 0
    if lock_page_or_retry(cpu, vmf, page) == 0:
        put_page(cpu, page)
        return VmFault.RETRY
    pte_map_lock_nonspec(cpu, vmf)
    return map_swap_page(cpu, vmf, page, entry)
