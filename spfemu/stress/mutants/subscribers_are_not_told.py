# SPDX-License-Identifier: MIT
"""Subscribers are told of nothing.

Synthetic; single calls have been missing in Linux more than once.

A virtual machine or a device goes on using pages that are no longer mapped.
"""

from spfemu.kernel import kernel

PROTOCOL = "classic"
PROMISE = "NOTIFIERS"
SCHEDULE = "a_subscriber_reads_before_and_after_a_copy"


@kernel
def mmu_notifier_invalidate_range_start(cpu: int, mm: int, start: int, end: int) -> None:
    """Say nothing."""


@kernel
def mmu_notifier_invalidate_range(cpu: int, mm: int, start: int, end: int) -> None:
    """Say nothing."""


@kernel
def mmu_notifier_invalidate_range_end(cpu: int, mm: int, start: int, end: int) -> None:
    """Say nothing."""
