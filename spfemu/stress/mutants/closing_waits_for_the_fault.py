# SPDX-License-Identifier: MIT
"""A fault on memory whose userfaultfd is being closed returns without letting go of its lock.

As before Linux 6.15: 'mm/userfaultfd: fix release hang over concurrent GUP' (2025-03).

get_user_pages and populate keep the mmap lock after such a fault and try again, and who closes the
userfaultfd waits for that lock: for ever.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import USERFAULTFD_CTX, VMA, VMF
from spfemu.primitives import load, read_once

PROTOCOL = "classic"
PROMISE = "PROGRESS"
SCHEDULE = "a_page_is_populated_while_its_monitor_goes"


@around
def handle_userfault(cpu: int, vmf: int, reason: int) -> int:
    """Say that the fault is done."""
    ctx = load(load(vmf + VMF.vma) + VMA.vm_userfaultfd_ctx)
    if read_once(ctx + USERFAULTFD_CTX.released) != 0:
        return 0
    return proceed(cpu, vmf, reason)
