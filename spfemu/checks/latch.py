# SPDX-License-Identifier: MIT
"""The latched tree of VMAs: at rest both copies are equal."""

from __future__ import annotations

import numpy as np

from spfemu.checks.state import State

LINKS = ("left", "right", "parent", "color")


def check_latch(state: State, mm: int) -> None:
    """Compare the copies of the tree of one mm; needs `State.vmas`.

    A kernel without CONFIG_VMA_LATCH never counts, and has no second copy.
    """
    add = state.findings.add
    fields = state.segment.mms[mm]
    seq, first, second = (int(fields[name]) for name in ("mm_rb_seq", "mm_rb", "mm_rb_latch"))
    if seq == 0:
        if second != 0:
            add(f"mm {mm} has a second copy of its tree, but mm_rb_seq is 0")
        return
    if seq & 1:
        add(f"mm_rb_seq of mm {mm} is odd ({seq}): a change of the tree never ended")
    if first != second:
        add(f"the copies of the tree of mm {mm} have roots {first:#x} and {second:#x}")
    for link in LINKS:
        _compare(state, mm, "rb_" + link, "latch_" + link)


def _compare(state: State, mm: int, first: str, second: str) -> None:
    members = state.vmas[mm]
    vmas = state.segment.vmas
    state.findings.each(
        members[np.flatnonzero(vmas[first][members] != vmas[second][members])],
        lambda i: (
            f"tree of mm {mm}: {state.describe_vma(i)} has {second} {int(vmas[second][i]):#x}, but "
            f"{first} {int(vmas[first][i]):#x}"
        ),
    )
