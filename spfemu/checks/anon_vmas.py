# SPDX-License-Identifier: MIT
"""anon_vmas: linked to the VMAs that may map their pages, counted, and free if linked to none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from spfemu.checks.findings import walk
from spfemu.checks.state import State
from spfemu.layout import ANON_VMA_CHAIN, VMA, WORD

_FIELDS = {f.name: f.offset // WORD for f in ANON_VMA_CHAIN.FIELDS}


@dataclass(frozen=True)
class Chain:
    """One anon_vma_chain of a VMA: all fields are addresses, `vma` the one that it was found by."""

    address: int
    vma: int
    says_vma: int
    anon_vma: int
    next: int
    prev: int


def inherited(state: State, vma: int) -> set[int]:
    """Addresses of the anon_vmas that VMA `vma` (an index) has inherited, as far as they go."""
    avcs, slots = state.segment.avcs, state.avc_slots
    found: set[int] = set()
    seen: set[int] = set()
    index = slots.index(int(state.segment.vmas["avc"][vma][_FIELDS["same_vma"]]))
    while index >= 0 and index not in seen:
        seen.add(index)
        found.add(int(avcs["anon_vma"][index]))
        index = slots.index(int(avcs["same_vma"][index]))
    return found


def check_anon_vmas(state: State) -> None:
    """Check chains, then counts and owners of anon_vmas."""
    chains = [c for members in state.vmas.values() for i in members for c in _chains(state, int(i))]
    _check_free_chains(state)
    links: dict[int, list[Chain]] = {}
    for chain in chains:
        links.setdefault(state.anon_vma_slots.index(chain.anon_vma), []).append(chain)
    _check_lists(state, links)
    _check_owners(state, links)
    _check_counts(state, links)
    _check_relatives(state)


def _chains(state: State, index: int) -> list[Chain]:
    """Chains of one VMA: the one inside it, then those from the slab, which are claimed."""
    segment, slots = state.segment, state.avc_slots
    address = state.vma_slots.address(index)
    own = [int(word) for word in segment.vmas["avc"][index]]
    pointer = int(segment.vmas["anon_vma"][index])
    if pointer != own[_FIELDS["anon_vma"]] and state.anon_vma_slots.index(pointer) != -2:
        state.findings.add(
            f"{state.describe_vma(index)} points at anon_vma {pointer:#x}, but is linked to "
            f"{own[_FIELDS['anon_vma']]:#x}"
        )
    found = []
    if own[_FIELDS["anon_vma"]]:
        found.append(_chain(address + VMA.avc, address, own))
    name = f"the chains of {state.describe_vma(index)}"
    following = slots.indexes(segment.avcs["same_vma"]).tolist()
    listed = walk(state.findings, name, slots, following, own[_FIELDS["same_vma"]])
    state.avc_owners.claim(listed, name)
    for slot in listed:
        words = [int(segment.avcs[field.name][slot]) for field in ANON_VMA_CHAIN.FIELDS]
        found.append(_chain(slots.address(slot), address, words))
    state.findings.each(
        [c for c in found if c.says_vma != address],
        lambda c: f"the chain at {c.address:#x} of {name} names VMA {c.says_vma:#x}",
    )
    return found


def _chain(address: int, vma: int, words: list[int]) -> Chain:
    return Chain(
        address,
        vma,
        *(words[_FIELDS[name]] for name in ("vma", "anon_vma", "next", "prev")),
    )


def _check_free_chains(state: State) -> None:
    """Check that each slot of the slab is a VMA's or free."""
    slots = state.avc_slots
    links = slots.indexes(state.segment.avcs["same_vma"]).tolist()
    name = "the list of free anon_vma_chains"
    free = walk(state.findings, name, slots, links, int(state.segment.system["avc_free"]))
    state.avc_owners.claim(free, name)
    state.findings.each(
        state.avc_owners.lost(),
        lambda i: f"{slots.describe(i)} is lost: no VMA has it and it is not free",
    )


def _check_lists(state: State, links: dict[int, list[Chain]]) -> None:
    """Check that each anon_vma lists the chains that lead to it."""
    slots = state.anon_vma_slots
    for index, chains in links.items():
        if index < 0:
            state.findings.each(
                chains,
                lambda c: f"the chain at {c.address:#x} leads to {c.anon_vma:#x}, no anon_vma",
            )
            continue
        by_address = {c.address: c for c in chains}
        listed: set[int] = set()
        prev, address = 0, int(state.segment.anon_vmas["head"][index])
        while address in by_address and address not in listed:
            listed.add(address)
            if by_address[address].prev != prev:
                state.findings.add(
                    f"the chain at {address:#x} of {slots.describe(index)} has prev "
                    f"{by_address[address].prev:#x} instead of {prev:#x}"
                )
            prev, address = address, by_address[address].next
        if address != 0:
            state.findings.add(
                f"the list of {slots.describe(index)} leads to {address:#x}, no chain of a VMA "
                "or one a second time"
            )
        elif len(listed) != len(by_address):
            state.findings.add(
                f"the list of {slots.describe(index)} has {len(listed)} chains, but "
                f"{len(by_address)} lead to it"
            )


def _check_owners(state: State, links: dict[int, list[Chain]]) -> None:
    """Check that each anon_vma has VMAs or is free."""
    segment, slots = state.segment, state.anon_vma_slots
    state.anon_vma_owners.claim(sorted(i for i in links if i >= 0), "VMAs")
    following = slots.indexes(segment.anon_vmas["next_free"]).tolist()
    name = "the list of free anon_vmas"
    free = walk(state.findings, name, slots, following, int(segment.system["anon_vma_free"]))
    state.anon_vma_owners.claim(free, name)
    for index, cpu in enumerate(segment.cpus):
        name = f"the anon_vma cache of CPU {index}"
        cached = walk(state.findings, name, slots, following, int(cpu["anon_vma_list"]))
        if len(cached) != int(cpu["anon_vma_count"]):
            counted = cpu["anon_vma_count"]
            state.findings.add(f"{name} holds {len(cached)} anon_vmas, but counts {counted}")
        state.anon_vma_owners.claim(cached, name)
    state.findings.each(
        state.anon_vma_owners.lost(),
        lambda i: f"{slots.describe(i)} is lost: no VMA points at it and it is not free",
    )


def _check_counts(state: State, links: dict[int, list[Chain]]) -> None:
    """Check refcount, in_use and degree."""
    anon_vmas, slots = state.segment.anon_vmas, state.anon_vma_slots
    users = np.zeros(slots.count, np.int64)
    for index, chains in links.items():
        if index >= 0:
            users[index] = len(chains)
    members = [state.segment.vmas["anon_vma"][m] for m in state.vmas.values()]
    pointing = Counter(slots.indexes(np.concatenate(members)).tolist() if members else [])
    descendants: Counter[int] = Counter()
    children: Counter[int] = Counter()
    for index in map(int, np.flatnonzero(users)):
        root = slots.index(int(anon_vmas["root"][index]))
        if root != index:
            descendants[root] += 1
        children[slots.index(int(anon_vmas["parent"][index]))] += 1

    def used(i: int) -> str:
        more = f" and {descendants[i]} anon_vmas descend from it" if descendants[i] else ""
        return f"{users[i]} VMAs point at it{more}"

    expected = users + np.asarray([descendants[i] for i in range(slots.count)], np.int64)
    for field, values in (("refcount", expected), ("in_use", (users > 0).astype(np.int64))):
        state.findings.each(
            np.flatnonzero(anon_vmas[field] != values),
            lambda i, field=field: (  # type: ignore[misc]
                f"{slots.describe(i)} has {field} {anon_vmas[field][i]}, but {used(i)}"
            ),
        )
    degrees = np.asarray([pointing[i] + children[i] for i in range(slots.count)], np.int64)
    state.findings.each(
        np.flatnonzero(anon_vmas["degree"] != degrees),
        lambda i: (
            f"{slots.describe(i)} has degree {anon_vmas['degree'][i]} instead of {degrees[i]}"
        ),
    )


def _check_relatives(state: State) -> None:
    """Check that parents and roots are in use, and that lock and list are free where they are."""
    anon_vmas, slots = state.segment.anon_vmas, state.anon_vma_slots
    in_use = anon_vmas["refcount"] > 0
    roots, parents = slots.indexes(anon_vmas["root"]), slots.indexes(anon_vmas["parent"])
    own = np.arange(slots.count)
    wrong = (roots < 0) | ~in_use[roots] | (roots[roots] != roots)
    wrong |= (roots == own) != (parents == -1)
    wrong |= (parents >= 0) & (~in_use[parents] | (roots[parents] != roots))
    state.findings.each(
        np.flatnonzero(in_use & (wrong | (parents == -2))),
        lambda i: (
            f"{slots.describe(i)} has root {anon_vmas['root'][i]:#x} and parent "
            f"{anon_vmas['parent'][i]:#x}"
        ),
    )
    state.findings.each(
        np.flatnonzero(~in_use & ((anon_vmas["head"] != 0) | (anon_vmas["parent"] != 0))),
        lambda i: f"{slots.describe(i)} is free, but has chains or a parent",
    )
