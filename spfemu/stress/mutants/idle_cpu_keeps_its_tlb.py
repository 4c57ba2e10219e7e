# SPDX-License-Identifier: MIT
"""A CPU that goes on from idle does not look whether its mm was flushed meanwhile.

Lazy TLB mode: b956575bed91 (Linux 4.14) and its successors got this wrong more than once.

It uses translations that were flushed while it slept.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.mm.irq import CpuState, serve_ipi
from spfemu.primitives import load, read_once, smp_mb, write_once

PROTOCOL = "classic"
PROMISE = "TLB"
SCHEDULE = "stale_translations"


@kernel
def cpu_idle_exit(cpu: int) -> None:
    """Go on."""
    write_once(cpu + CPU.state, CpuState.RUNNING)
    smp_mb()
    if read_once(cpu + CPU.ipi_request) != load(cpu + CPU.ipi_done):
        serve_ipi(cpu)
