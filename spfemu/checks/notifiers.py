# SPDX-License-Identifier: MIT
"""MMU notifiers: every invalidation has ended, and no subscriber has a translation that is not."""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import Slots, walk
from spfemu.checks.state import State
from spfemu.layout import MMU_NOTIFIER, PERCPU_RWSEM, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, Pte


def check_notifiers(state: State) -> None:
    """Check the subscriptions of all mms and the free ones; needs `State.mappings`."""
    segment = state.segment
    count = segment.geometry.nr_notifiers
    slots = Slots("MMU notifier", segment.address["notifiers"], MMU_NOTIFIER.SIZE, count)
    links = slots.indexes(segment.notifiers["next"]).tolist()
    head = int(segment.system["notifier_free"])
    name = "the list of free MMU notifiers"
    free = walk(state.findings, name, slots, links, head)
    listed: dict[int, int] = {}
    for mm in state.mms:
        _check_registration_lock(state, mm)
        name = f"the list of MMU notifiers of mm {mm}"
        head = int(segment.mms["notifier_subscriptions"][mm])
        listed |= dict.fromkeys(walk(state.findings, name, slots, links, head), mm)
    for index in range(slots.count):
        _check_membership(state, slots, index, listed, free)
    for index, mm in listed.items():
        _check_counts(state, slots, index)
        _check_shadow(state, slots, index, mm)


def _check_registration_lock(state: State, mm: int) -> None:
    words = state.segment.mms["mmu_notifier_lock"][mm]
    for name, offset in (("rss", PERCPU_RWSEM.rss), ("block", PERCPU_RWSEM.block)):
        if words[offset // WORD] != 0:
            state.findings.add(
                f"mmu_notifier_lock of mm {mm} is not free: its {name} is {words[offset // WORD]}"
            )


def _check_membership(
    state: State, slots: Slots, index: int, listed: dict[int, int], free: list[int]
) -> None:
    """Check that a slot is free, subscribed to the mm on whose list it is, or left by its mm."""
    slot, name = state.segment.notifiers[index], slots.describe(index)
    mm, is_free = listed.get(index), index in free
    if bool(slot["in_use"]) == is_free or (mm is not None and is_free):
        state.findings.add(f"{name} is {'free and in use' if is_free else 'lost'}")
        return
    expected = 0 if mm is None else state.mm_slots.address(mm)
    if int(slot["mm"]) != expected:
        where = "no mm's list" if mm is None else f"the list of mm {mm}"
        state.findings.add(f"{name} is on {where}, but names {int(slot['mm']):#x} as its mm")


def _check_counts(state: State, slots: Slots, index: int) -> None:
    slot, name, add = state.segment.notifiers[index], slots.describe(index), state.findings.add
    if slot["lock"]:
        add(f"the lock of {name} is held by CPU {int(slot['lock']) - 1}")
    if slot["nr_starts"] != slot["nr_ends"]:
        add(f"{name} was told of {slot['nr_starts']} starts, but {slot['nr_ends']} ends")
    if slot["in_progress"] != slot["nr_starts"] - slot["nr_ends"]:
        add(f"{name} has {slot['in_progress']} invalidations in progress")


def _check_shadow(state: State, slots: Slots, index: int, mm: int) -> None:
    """Check that each translation is that of a present pte."""
    pairs = state.segment.notifiers["shadow"][index].reshape(-1, 2)
    pairs = pairs[pairs[:, 0] != 0]
    entries = state.mappings[mm].lookup(pairs[:, 0])
    frames = np.where(entries & Pte.PRESENT != 0, entries & PTE_ADDR_MASK, -1)
    state.findings.each(
        np.flatnonzero(frames != pairs[:, 1]),
        lambda i: (
            f"{slots.describe(index)} translates {pairs[i, 0]:#x} of mm {mm} to {pairs[i, 1]:#x}, "
            f"but its pte is {entries[i]:#x}"
        ),
    )
