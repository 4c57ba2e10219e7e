# SPDX-License-Identifier: MIT
"""What has been unmapped is freed without a flush.

Synthetic; compare CVE-2018-18281, where mremap flushed too late.

A frame is somebody else's while a CPU still writes to it through its TLB.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, GATHER
from spfemu.mm.tlb import tlb_batch_free
from spfemu.primitives import store

PROTOCOL = "spf"
PROMISE = "TLB"
SCHEDULE = "stale_translations"


@kernel
def tlb_finish_mmu(cpu: int) -> None:
    """Free, only."""
    tlb_batch_free(cpu, cpu + CPU.gather)
    store(cpu + CPU.gather + GATHER.mm, 0)
    store(cpu + CPU.gather + GATHER.file_only, 0)
