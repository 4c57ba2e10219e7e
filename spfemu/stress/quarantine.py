# SPDX-License-Identifier: MIT
"""How much freed memory CPUs keep from reuse in a stress run (oracles/kasan.py)."""

from __future__ import annotations

from spfemu.layout import QUARANTINE_ENTRIES
from spfemu.segment import Segment


def set_quarantine(segment: Segment, seed: int) -> None:
    """Let the CPUs of `segment` keep what they free, if `seed` is even.

    A touch that comes late is seen if what it touches is still free, but what is broken only by a
    quick reuse must go on being reused: so every other round is without.  All CPUs together keep
    at most half of any slab, and of the frames.
    """
    g = segment.geometry
    smallest = min(g.nr_small, g.nr_vmas, g.nr_anon_vmas, g.nr_avcs, g.nr_files)
    kept = min(smallest // (2 * g.nr_cpus), QUARANTINE_ENTRIES)
    segment.stress["quarantine"] = 0 if seed % 2 else kept
