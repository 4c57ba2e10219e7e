# SPDX-License-Identifier: MIT
"""A flush of TLBs flushes only that of the CPU that asks for it.

Synthetic: what every flush was before there was more than one CPU.

Other CPUs go on using translations to frames that are free or have been protected.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "TLB"
SCHEDULE = "stale_translations"


@kernel
def flush_tlb_others(cpu: int, mm: int) -> None:
    """Leave them alone."""
