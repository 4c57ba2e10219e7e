# SPDX-License-Identifier: MIT
"""Pages stay protected for a monitor when their registration ends.

Linux up to 5.19: "mm/uffd: reset write protection when unregister with wp-mode" (6.0).

Entries have a bit that no monitor will ever take away.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import VMA
from spfemu.mm.flags import Vm
from spfemu.mm.zap import MmCp
from spfemu.primitives import load

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "a_registration_ends"


@around
def change_protection(cpu: int, vma: int, start: int, end: int, cp_flags: int) -> int:
    """End protection only where somebody asks for that."""
    if cp_flags == MmCp.UFFD_WP_RESOLVE and (load(vma + VMA.vm_flags) & Vm.UFFD_WP) == 0:
        return 0
    return proceed(cpu, vma, start, end, cp_flags)
