# SPDX-License-Identifier: MIT
"""The swap area: each slot held by as many ptes as it counts, each free one on its cluster's list.

And the swap cache: each page names the slot that names it, and something but the cache knows it.
"""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import Slots, Words, walk
from spfemu.checks.state import State
from spfemu.layout import PAGE_SHIFT, SWAP_SLOT
from spfemu.mm.flags import PTE_ADDR_MASK, Pg, Pte
from spfemu.mm.swapfile import SWAPFILE_CLUSTER
from spfemu.mm.swapops import SWAP_ENTRY, SWAP_ENTRY_BITS

ENTRY_BITS = SWAP_ENTRY | PTE_ADDR_MASK | int(Pte.UFFD_WP)


def is_swap_pte(entries: Words) -> Words:
    """Tell which ptes name slots of the swap area."""
    found: Words = entries & SWAP_ENTRY_BITS == SWAP_ENTRY
    return found


def cached_pages(state: State) -> Words:
    """Return for each frame in how many slots the swap cache has it."""
    frames = state.page_slots.indexes(state.segment.swap_slots["page"])
    return np.bincount(frames[frames >= 0], minlength=state.page_slots.count)


def check_swap(state: State, mapped: Words) -> None:
    """Check slots, their lists, the cache; `mapped` says how many ptes map each frame."""
    held = _held_slots(state)
    slots = _slots(state)
    counts = state.segment.swap_slots["count"]
    state.findings.each(
        np.flatnonzero(counts != held),
        lambda i: f"{slots.describe(i)} counts {counts[i]} ptes, but {held[i]} hold its entry",
    )
    _check_cache(state, slots, mapped)
    _check_clusters(state, slots)


def _slots(state: State) -> Slots:
    segment = state.segment
    at = segment.address["swap_slots"]
    return Slots("swap slot", at, SWAP_SLOT.SIZE, segment.geometry.nr_swap)


def _held_slots(state: State) -> Words:
    """Count the ptes that hold each slot's entry, and check each process's own count of them."""
    nr_swap = state.segment.geometry.nr_swap
    held = np.zeros(nr_swap, np.int64)
    for mm, swapped in state.swapped.items():
        offsets = swapped.entry >> PAGE_SHIFT
        bad = (offsets >= nr_swap) | (offsets < 0) | (swapped.entry & ~ENTRY_BITS != 0)
        state.findings.each(
            np.flatnonzero(bad),
            lambda i, mm=mm, s=swapped: (  # type: ignore[misc]
                f"mm {mm}: the pte of {s.address[i]:#x} ({s.entry[i]:#x}) names no swap slot"
            ),
        )
        held += np.bincount(offsets[~bad], minlength=nr_swap)
        found = int(state.segment.mms["swap_ents"][mm])
        if found != len(swapped.entry):
            state.findings.add(
                f"swap_ents of mm {mm} is {found}, but {len(swapped.entry)} ptes hold swap entries"
            )
    return held


def _check_cache(state: State, slots: Slots, mapped: Words) -> None:
    """Check the pages that slots name, and that no other page says that it is in the cache."""
    pages, swap = state.segment.pages, state.segment.swap_slots
    frames = state.page_slots.indexes(swap["page"])
    state.findings.each(
        np.flatnonzero(frames < -1),
        lambda i: f"{slots.describe(i)} has {int(swap['page'][i]):#x} as its page, which is none",
    )
    cached = np.flatnonzero(frames >= 0)
    entries = SWAP_ENTRY | (cached << PAGE_SHIFT)
    names = pages["private"][frames[cached]]
    state.findings.each(
        np.flatnonzero(names != entries),
        lambda i: (
            f"{state.frame_slots.describe(frames[cached[i]])} is in the swap cache for "
            f"{slots.describe(cached[i])}, but names entry {names[i]:#x}"
        ),
    )
    says = pages["flags"] & Pg.SWAPCACHE != 0
    inside = np.zeros(len(pages), np.bool_)
    inside[frames[cached]] = True
    state.findings.each(
        np.flatnonzero(says != inside),
        lambda i: (
            f"{state.frame_slots.describe(i)} says that it is in the swap cache, and no slot has it"
            if says[i]
            else f"{state.frame_slots.describe(i)} is in the swap cache and does not say so"
        ),
    )
    alone = (swap["count"][cached] == 0) & (mapped[frames[cached]] == 0)
    state.findings.each(
        np.flatnonzero(alone),
        lambda i: (
            f"{state.frame_slots.describe(frames[cached[i]])} is in the swap cache, and no page "
            "table leads to it"
        ),
    )


def _check_clusters(state: State, slots: Slots) -> None:
    """Check that each cluster's list has just the slots that nobody holds."""
    segment = state.segment
    swap = segment.swap_slots
    unused = (swap["count"] == 0) & (swap["page"] == 0)
    links = slots.indexes(swap["next"]).tolist()
    for index, cluster in enumerate(segment.swap_clusters):
        name = f"the free list of swap cluster {index}"
        free = walk(state.findings, name, slots, links, int(cluster["free"]))
        if len(free) != int(cluster["nr_free"]):
            count = int(cluster["nr_free"])
            state.findings.add(f"{name} holds {len(free)} slots, but counts {count}")
        first = index * SWAPFILE_CLUSTER
        last = min(first + SWAPFILE_CLUSTER, segment.geometry.nr_swap)
        expected = {int(i) for i in first + np.flatnonzero(unused[first:last])}
        state.findings.each(
            sorted(expected - set(free)),
            lambda i: f"{slots.describe(i)} is lost: nobody holds it, and it is not free",
        )
        state.findings.each(
            sorted(set(free) - expected),
            lambda i, name=name: f"{slots.describe(i)} is on {name} and in use or another's",  # type: ignore[misc]
        )
