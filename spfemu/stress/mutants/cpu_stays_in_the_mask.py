# SPDX-License-Identifier: MIT
"""A CPU that has changed to another mm stays in the cpumask of the one before.

Synthetic: lazy TLB mode without an end.

Each flush of that mm interrupts a CPU that does not run it, and its mask is never empty.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import CPU
from spfemu.mm.context import cpumask_word
from spfemu.primitives import atomic_fetch_or, load

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "a_child_reads"


@around
def switch_mm(cpu: int, next_mm: int) -> None:
    """Change, and take the bit back."""
    prev = load(cpu + CPU.mm)
    proceed(cpu, next_mm)
    if prev != next_mm:
        number = load(cpu + CPU.id)
        atomic_fetch_or(cpumask_word(prev, number), 1 << (number & 31))
