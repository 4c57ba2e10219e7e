# SPDX-License-Identifier: MIT
"""Huge frames and the page-table entries that map them."""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import Slots, Words, walk
from spfemu.checks.state import State
from spfemu.layout import HUGE_PAGE, PAGE_SHIFT
from spfemu.mm.flags import HPAGE_PMD_NR, PAGE_KIND_MASK, PTE_ADDR_MASK, PageKind, Pg, Pte

HUGE_BITS = PTE_ADDR_MASK | int(
    Pte.PRESENT | Pte.RW | Pte.USER | Pte.ACCESSED | Pte.DIRTY | Pte.PSE | Pte.PROTNONE | Pte.NX
)


def claim_free_huge(state: State) -> Words:
    """Claim the frames of huge frames that are in no use; check the huge frames' own counts."""
    segment, g = state.segment, state.segment.geometry
    slots = Slots("huge frame", segment.address["huge_pages"], HUGE_PAGE.SIZE, g.nr_huge)
    links = slots.indexes(segment.huge_pages["next"]).tolist()
    head = int(segment.system["huge_free"])
    listed = walk(state.findings, "the list of free huge frames", slots, links, head)
    flags = segment.pages["flags"]
    compound = np.arange(g.nr_frames) >= g.nr_small
    state.findings.each(
        np.flatnonzero((flags & Pg.COMPOUND != 0) != compound),
        lambda i: (
            f"{state.frame_slots.describe(i)} is {'' if compound[i] else 'no '}part of a huge "
            f"frame, but has flags {flags[i]:#x}"
        ),
    )
    frames = np.arange(g.nr_small, g.nr_frames).reshape(-1, HPAGE_PMD_NR)
    unused = flags[frames] & PAGE_KIND_MASK == PageKind.FREE
    live = np.count_nonzero(~unused, axis=1)
    found = segment.huge_pages["live"]
    state.findings.each(
        np.flatnonzero(found != live),
        lambda i: f"{slots.describe(i)} counts {found[i]} frames in use, but {live[i]} are",
    )
    state.findings.each(
        sorted(set(listed) ^ set(np.flatnonzero(live == 0).tolist())),
        lambda i: f"{slots.describe(i)} is {'free and in use' if i in listed else 'lost'}",
    )
    free: Words = frames[unused]
    state.frame_owners.claim(free, "a huge frame")
    return free


def check_huge_entries(
    state: State, mm: int, addresses: Words, entries: Words
) -> tuple[Words, Words]:
    """Check the huge ones among pmd entries; returns them as the ptes into which they split."""
    huge = entries & Pte.PSE != 0
    addresses, entries = addresses[huge], entries[huge]
    first = state.segment.geometry.nr_small
    frames = state.frame_slots.indexes(entries & PTE_ADDR_MASK)
    astray = (frames < first) | ((frames - first) % HPAGE_PMD_NR != 0)
    state.findings.each(
        np.flatnonzero(astray | (entries & ~HUGE_BITS != 0)),
        lambda i: f"mm {mm}: the huge entry of {addresses[i]:#x} is bad: {entries[i]:#x}",
    )
    offsets = np.arange(HPAGE_PMD_NR, dtype=np.int64) << PAGE_SHIFT
    ptes = (entries[~astray] & HUGE_BITS & ~int(Pte.PSE))[:, None] + offsets
    return (addresses[~astray][:, None] + offsets).ravel(), ptes.ravel()


def claim_deposited(state: State, mm: int, tables: Words, addresses: Words, bases: Words) -> int:
    """Claim the tables that lie with huge entries, one each; returns how many.

    `tables` have the pmd entries, `bases` are their lowest addresses, `addresses` those of the huge
    entries.
    """
    count = 0
    for table, base in zip(tables.tolist(), bases.tolist(), strict=True):
        name = f"the deposited tables of {state.frame_slots.describe(table)}"
        head = int(state.segment.pages["mapping"][table])
        found = walk(state.findings, name, state.page_slots, state.page_links, head)
        state.frame_owners.claim(found, f"a page table (deposited) of mm {mm}")
        huge = np.count_nonzero((addresses >= base) & (addresses < base + (1 << 30)))
        if len(found) != huge:
            state.findings.add(f"mm {mm}: {name} are {len(found)}, but it has {huge} huge entries")
        count += len(found)
    return count
