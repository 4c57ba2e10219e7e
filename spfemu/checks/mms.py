# SPDX-License-Identifier: MIT
"""mms: each in use or free, and known to the CPUs that run them."""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import walk
from spfemu.checks.state import State
from spfemu.layout import CPUMASK_SHIFT

CPUMASK_BITS = 1 << CPUMASK_SHIFT


def check_mms(state: State) -> None:
    """Check the list of free mms, and which CPUs are in whose cpumask."""
    segment, slots = state.segment, state.mm_slots
    links = slots.indexes(segment.mms["next_free"]).tolist()
    name = "the list of free mms"
    free = walk(state.findings, name, slots, links, int(segment.system["mm_free"]))
    in_use = set(state.mms)
    state.findings.each(
        sorted(in_use & set(free)), lambda i: f"{slots.describe(i)} is free and in use"
    )
    state.findings.each(
        sorted(set(range(slots.count)) - in_use - set(free)),
        lambda i: f"{slots.describe(i)} is lost: neither free nor in use",
    )
    runs = slots.indexes(segment.cpus["mm"])
    state.findings.each(
        [c for c in range(len(runs)) if runs[c] >= 0 and runs[c] not in in_use],
        lambda c: f"CPU {c} runs mm {runs[c]}, which is not in use",
    )
    for mm in state.mms:
        masks = segment.mms["cpumask"][mm]
        marked = np.flatnonzero((masks[:, None] >> np.arange(CPUMASK_BITS)) & 1)
        state.findings.each(
            [c for c in marked if c >= len(runs) or runs[c] != mm],
            lambda c, mm=mm: f"CPU {c} is in the cpumask of mm {mm}, but does not run it",  # type: ignore[misc]
        )
