# SPDX-License-Identifier: MIT
"""The gate asks whether the VMA looks the same instead of whether a writer has run.

M25: Lespinasse named this on 30 April 2021 as what a precise check overlooks. Equal is not
unchanged: a page may have been written in place and protected twice meanwhile.

A copy on write maps its old copy, and a write of another thread is lost.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE, VMA, VMF
from spfemu.mm.vma import __find_vma
from spfemu.primitives import load, smp_load_acquire

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "copy_while_the_page_is_written_in_place"
ID = "M25"
CONFIG = {"CONFIG_LINUX_VERSION": 1292}


@kernel
def speculation_holds(cpu: int, vmf: int, reason: int) -> int:
    """Compare the VMA with the copy."""
    vma = __find_vma(cpu, load(cpu + CPU.mm), load(vmf + VMF.address))
    if vma == 0 or load(vma + VMA.vm_start) > load(vmf + VMF.address):
        return 0
    return load(vma + VMA.vm_flags) == load(cpu + CPU.pvma + VMA.vm_flags)


@kernel
def wp_can_reuse(page: int) -> int:
    """Go by the number of mappings, as up to 5.8."""
    return smp_load_acquire(page + PAGE.mapcount) == 1
