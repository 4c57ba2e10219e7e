# SPDX-License-Identifier: MIT
"""Event counts, per CPU (Linux 5.12, include/linux/vmstat.h)."""

from spfemu.kernel import kernel, notrace
from spfemu.layout import CPU, WORD
from spfemu.primitives import load, store


@notrace
@kernel
def count_vm_events(cpu: int, event: int, count: int) -> None:
    """Add `count` to the CPU's own counter; nobody else writes it."""
    addr = cpu + CPU.event + event * WORD
    store(addr, load(addr) + count)


@notrace
@kernel
def count_vm_event(cpu: int, event: int) -> None:
    """Count one event."""
    count_vm_events(cpu, event, 1)
