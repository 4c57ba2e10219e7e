# SPDX-License-Identifier: MIT
"""userfaultfds: contexts open or free, VMAs served by an open one, protection only where served."""

from __future__ import annotations

from collections import Counter

import numpy as np

from spfemu.checks.findings import END, walk
from spfemu.checks.state import State
from spfemu.layout import UFFD_WAIT, WORD
from spfemu.mm.flags import VM_UFFD_FLAGS, Pte, Vm


def check_uffds(state: State) -> None:
    """Check contexts, the references that they hold, and what is served."""
    _check_contexts(state)
    _check_waits(state)
    _check_mm_counts(state)
    for mm in state.mms:
        _check_vmas(state, mm)
        _check_protection(state, mm)


def _check_contexts(state: State) -> None:
    """Check that each context is free, or open with nobody waiting."""
    uffds, slots = state.segment.uffds, state.uffd_slots
    links = slots.indexes(uffds["next_free"]).tolist()
    name = "the list of free userfaultfds"
    free = set(walk(state.findings, name, slots, links, int(state.segment.system["uffd_free"])))
    for index in range(slots.count):
        ctx, what = uffds[index], slots.describe(index)
        expected = 0 if index in free else 1
        if int(ctx["refcount"]) != expected:
            state.findings.add(f"{what} has refcount {ctx['refcount']} instead of {expected}")
        if ctx["head"] or ctx["tail"]:
            state.findings.add(f"faults still wait for {what}")
        if expected and ctx["released"]:
            state.findings.add(f"{what} is released, but not free")
        mm = state.mm_slots.index(int(ctx["mm"]))
        if (mm == END) != (index in free) or (mm != END and mm not in state.mms):
            state.findings.add(f"{what} names {int(ctx['mm']):#x} as its mm")


def _check_waits(state: State) -> None:
    """Check that no CPU has a message in a list."""
    states = state.segment.cpus["uffd_wait"][:, UFFD_WAIT.state // WORD]
    state.findings.each(
        np.flatnonzero(states), lambda i: f"CPU {i} still has a message for a userfaultfd"
    )


def _check_mm_counts(state: State) -> None:
    """Check who keeps each mm: its users, together, and contexts; nobody is about to flush.

    What neither has is an mm that nobody has begun to use.
    """
    mms, slots = state.segment.mms, state.mm_slots
    contexts = Counter(slots.indexes(state.segment.uffds["mm"]).tolist())
    for mm in state.mms:
        expected = int(mms["mm_users"][mm] > 0 or contexts[mm] == 0) + contexts[mm]
        if int(mms["mm_count"][mm]) != expected:
            found = mms["mm_count"][mm]
            state.findings.add(f"mm_count of mm {mm} is {found} instead of {expected}")
        if mms["tlb_flush_pending"][mm]:
            found = mms["tlb_flush_pending"][mm]
            state.findings.add(f"tlb_flush_pending of mm {mm} is {found}")


def _check_vmas(state: State, mm: int) -> None:
    """Check that a VMA has a context, an open one of its mm, if and only if its flags say so."""
    members = state.vmas[mm]
    vmas = state.segment.vmas[members]
    contexts = state.uffd_slots.indexes(vmas["vm_userfaultfd_ctx"])
    served = vmas["vm_flags"] & VM_UFFD_FLAGS != 0
    state.findings.each(
        np.flatnonzero(served != (contexts != END)),
        lambda i: (
            f"mm {mm}: {state.describe_vma(int(members[i]))} has userfaultfd "
            f"{vmas['vm_userfaultfd_ctx'][i]:#x}, but vm_flags {vmas['vm_flags'][i]:#x}"
        ),
    )
    owners = np.where(contexts >= 0, state.segment.uffds["mm"][contexts], 0)
    state.findings.each(
        np.flatnonzero((contexts != END) & (owners != state.mm_slots.address(mm))),
        lambda i: (
            f"mm {mm}: {state.describe_vma(int(members[i]))} is served by "
            f"{vmas['vm_userfaultfd_ctx'][i]:#x}, no open userfaultfd of this mm"
        ),
    )


def _check_protection(state: State, mm: int) -> None:
    """Check that entries are protected only where a monitor can end that, and not writable."""
    mappings = state.mappings[mm]
    protected = np.flatnonzero(mappings.entry & Pte.UFFD_WP != 0)
    addresses, entries = mappings.address[protected], mappings.entry[protected]
    vmas = state.segment.vmas[state.vmas[mm]]
    if len(vmas):
        position = np.maximum(np.searchsorted(vmas["vm_start"], addresses, "right") - 1, 0)
        inside = vmas["vm_flags"][position] & Vm.UFFD_WP != 0
        state.findings.each(
            np.flatnonzero(~inside),
            lambda i: (
                f"mm {mm}: the pte of {addresses[i]:#x} ({entries[i]:#x}) is protected for a "
                "userfaultfd that does not serve it"
            ),
        )
    state.findings.each(
        np.flatnonzero(entries & Pte.RW != 0),
        lambda i: (
            f"mm {mm}: the pte of {addresses[i]:#x} ({entries[i]:#x}) is protected for a "
            "userfaultfd and writable"
        ),
    )
