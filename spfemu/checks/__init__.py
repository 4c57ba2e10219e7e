# SPDX-License-Identifier: MIT
"""Invariants of a segment at rest: what must hold when no worker is running.

Every violation is a sentence that says what is wrong and where.  Corrupt memory of any kind leads
to violations, never to an exception or an endless loop.  What an invariant does not say: resident
set and reference counts are exact only at rest, RCU queues may hold objects or not, and a frame's
`mapping` and `index` are left alone where the protocol (`bare`) keeps none.
"""

from __future__ import annotations

from spfemu.checks.anon_vmas import check_anon_vmas
from spfemu.checks.cpus import check_counters, check_cpus, check_rcu_queues, check_tlbs
from spfemu.checks.files import check_files
from spfemu.checks.frames import check_frames
from spfemu.checks.latch import check_latch
from spfemu.checks.locks import check_locks, check_vma_locks
from spfemu.checks.mms import check_mms
from spfemu.checks.notifiers import check_notifiers
from spfemu.checks.page_cache import check_page_caches
from spfemu.checks.state import State
from spfemu.checks.tables import check_entries, check_tables
from spfemu.checks.uffds import check_uffds
from spfemu.checks.vmas import check_vma_slab, check_vmas
from spfemu.segment import Segment

__all__ = ["check_segment"]


def check_segment(segment: Segment) -> list[str]:
    """Check all invariants; returns the violations, none of them if all is well.

    Workers must have stopped: offline or idle, outside every lock.  Takes a fraction of a second
    for 100,000 frames.
    """
    state = State(segment)
    check_locks(state)
    check_cpus(state)
    check_counters(state)
    check_rcu_queues(state)
    check_mms(state)
    for mm in state.mms:
        check_vmas(state, mm)
        check_latch(state, mm)
        check_tables(state, mm)
        check_entries(state, mm)
    check_vma_slab(state)
    check_vma_locks(state)
    check_files(state)
    check_anon_vmas(state)
    check_uffds(state)
    check_page_caches(state)
    check_frames(state)
    check_tlbs(state)
    check_notifiers(state)
    return state.findings.messages
