# SPDX-License-Identifier: MIT
"""Frames: none lost, none owned twice, counts right, resident sets right."""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import Words, walk
from spfemu.checks.huge import claim_free_huge
from spfemu.checks.state import State
from spfemu.checks.swap import cached_pages, check_swap
from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import PAGE_KIND_MASK, PTE_ADDR_MASK, PageKind, Pg, Pte
from spfemu.mm.nodes import ZONE_CHAINS, ZONE_FREE, ZONE_LIST
from spfemu.mm.page_alloc import PCP_BATCH


def check_frames(state: State) -> None:
    """Find the owner of every frame, then check what the frame says about itself."""
    state.frame_owners.claim([0], "the zero page")
    tables = (state.frame_owners.owner != 0) & ~state.nodes
    tables[[0, *state.leaving]] = False
    mapped = _mapped_counts(state)
    cached = state.cached
    swap_cached = cached_pages(state)
    state.frame_owners.claim(np.flatnonzero(cached), "the page cache")
    swap_only = np.flatnonzero((swap_cached > 0) & (mapped == 0))
    state.frame_owners.claim(swap_only, "the swap cache")
    mapped_only = np.flatnonzero((mapped > 0) & (cached == 0))
    state.frame_owners.claim(mapped_only, "page tables that map it")
    free = np.concatenate([_claim_free(state), claim_free_huge(state)])
    lost = state.frame_owners.lost()
    pages = state.segment.pages
    state.findings.each(
        lost,
        lambda i: (
            f"{state.frame_slots.describe(i)} is lost: neither free nor mapped nor a page table, "
            f"{_describe_page(state, i)}"
        ),
    )
    expected = np.full(len(pages), PageKind.TABLE, np.int64)
    expected[0] = PageKind.RESERVED
    expected[mapped + swap_cached > 0] = PageKind.ANON
    expected[cached > 0] = PageKind.FILE
    expected[state.leaving] = PageKind.FILE
    expected[state.nodes] = PageKind.XA_NODE
    expected[free] = PageKind.FREE
    references = np.maximum(mapped + cached + swap_cached, 1)
    references[free] = 0
    known = state.frame_owners.owner != 0
    _compare(state, "kind", pages["flags"] & PAGE_KIND_MASK, expected, known)
    _compare(state, "refcount", pages["refcount"], references, known)
    _compare(state, "mapcount", pages["mapcount"], mapped, known)
    _check_shared(state, mapped)
    check_swap(state, mapped)
    _check_page_locks(state)
    _check_table_mm(state, tables)
    _check_rss(state)


def _describe_page(state: State, index: int) -> str:
    page = state.segment.pages[index]
    return ", ".join(f"{name} {int(page[name])}" for name in ("flags", "refcount", "mapcount"))


def _compare(state: State, what: str, found: Words, expected: Words, where: Words) -> None:
    state.findings.each(
        np.flatnonzero((found != expected) & where),
        lambda i: (
            f"{state.frame_slots.describe(i)} has {what} {found[i]} instead of {expected[i]} "
            f"(owner: {state.frame_owners.owner_of(i)})"
        ),
    )


def _check_page_locks(state: State) -> None:
    """Check that nobody has left an anonymous page locked; others are those of files."""
    flags = state.segment.pages["flags"]
    locked = (flags & Pg.LOCKED != 0) & (flags & PAGE_KIND_MASK == PageKind.ANON)
    state.findings.each(
        np.flatnonzero(locked),
        lambda i: f"{state.frame_slots.describe(i)} is locked (PG_locked)",
    )


def _mapped_counts(state: State) -> Words:
    """How many ptes map each frame; the zero page's do not count."""
    counts = np.zeros(state.frame_slots.count, np.int64)
    for mappings in state.mappings.values():
        frames = state.frame_slots.indexes(mappings.entry & PTE_ADDR_MASK)
        counts += np.bincount(frames[frames > 0], minlength=len(counts))
    return counts


def _check_shared(state: State, mapped: Words) -> None:
    """Check that nobody can write to an anonymous frame that another pte maps as well."""
    kinds = state.segment.pages["flags"] & PAGE_KIND_MASK
    shared = (mapped > 1) & (kinds == PageKind.ANON)
    for mm, mappings in state.mappings.items():
        frames = state.frame_slots.indexes(mappings.entry & PTE_ADDR_MASK)
        writable = (frames > 0) & (mappings.entry & Pte.RW != 0)
        state.findings.each(
            np.flatnonzero(writable & shared[frames]),
            lambda i, mm=mm, m=mappings, f=frames: (  # type: ignore[misc]
                f"mm {mm}: the pte of {m.address[i]:#x} is writable, but "
                f"{state.frame_slots.describe(f[i])} is mapped by {mapped[f[i]]} ptes"
            ),
        )


def _claim_free(state: State) -> Words:
    """Claim what is on the CPUs' lists and in the pool; check the lists' lengths."""
    findings = state.findings
    free: list[int] = []
    for index, cpu in enumerate(state.segment.cpus):
        for field, count in (("pcp_list", "pcp_count"), ("pcp_spare", "pcp_spare_count")):
            name = f"{field} of CPU {index}"
            found = _claim_list(state, name, int(cpu[field]))
            if len(found) != int(cpu[count]):
                findings.add(f"{name} holds {len(found)} frames, but counts {int(cpu[count])}")
            _check_node(state, name, found, int(cpu["node"]))
            free += found
    for node in range(state.segment.geometry.nr_nodes):
        free += _claim_zone(state, node)
    return np.asarray(free, np.int64)


def _claim_zone(state: State, node: int) -> list[int]:
    """Claim the free frames in the zone of a node, which must be of that node."""
    words, zone_word = state.segment.words, state.segment.zone_word
    name = f" of node {node}" if node else ""
    pool = _claim_chains(state, f"zone_chains{name}", int(words[zone_word(node, ZONE_CHAINS)]))
    pool += _claim_list(state, f"zone_list{name}", int(words[zone_word(node, ZONE_LIST)]))
    counted = int(words[zone_word(node, ZONE_FREE)])
    if len(pool) != counted:
        state.findings.add(f"the zone{name} holds {len(pool)} frames, but counts {counted}")
    _check_node(state, f"the zone{name}", pool, node)
    return pool


def _check_node(state: State, name: str, frames: list[int], node: int) -> None:
    """Check that free frames are on a list of their own node."""
    per_node = state.segment.geometry.frames_per_node
    state.findings.each(
        [i for i in frames if i // per_node != node],
        lambda i: f"{state.frame_slots.describe(i)} of node {i // per_node} is in {name}",
    )


def _claim_list(state: State, name: str, head: int) -> list[int]:
    found = walk(state.findings, name, state.page_slots, state.page_links, head)
    state.frame_owners.claim(found, name)
    return found


def _claim_chains(state: State, zone: str, head: int) -> list[int]:
    """Claim the pool's chains, which are linked to each other by `private` of their heads."""
    slots = state.page_slots
    links = slots.indexes(state.segment.pages["private"]).tolist()
    heads = walk(state.findings, zone, slots, links, head)
    pool: list[int] = []
    for start in heads:
        name = f"the chain of {slots.describe(start)}"
        found = walk(state.findings, name, slots, state.page_links, slots.address(start))
        if len(found) != PCP_BATCH:
            state.findings.add(f"{name} in the zone holds {len(found)} frames, not {PCP_BATCH}")
        pool += found
    state.frame_owners.claim(pool, zone)
    return pool


def _check_table_mm(state: State, tables: Words) -> None:
    """Check that page tables say whose they are; those in RCU queues may be anybody's.

    That mm may be gone by now.
    """
    private = state.segment.pages["private"]
    owners = {state.mm_slots.address(mm): mm for mm in range(state.mm_slots.count)}
    for index in map(int, np.flatnonzero(tables)):
        owner = state.frame_owners.owner_of(index)
        mm = owners.get(int(private[index]))
        if mm is None or ("page table" in owner and not owner.endswith(f"of mm {mm}")):
            state.findings.add(
                f"{state.frame_slots.describe(index)} is {owner}, but names "
                f"{int(private[index]):#x} as its mm"
            )


def _check_rss(state: State) -> None:
    """Check each mm's resident set: what is synced and what its CPUs still keep to themselves."""
    cpus, flags = state.segment.cpus, state.segment.pages["flags"]
    for mm, mappings in state.mappings.items():
        frames = state.frame_slots.indexes(mappings.entry & PTE_ADDR_MASK)
        frames = frames[frames != 0]
        found = np.where(frames > 0, flags[np.maximum(frames, 0)], 0)
        of_file = found & PAGE_KIND_MASK == PageKind.FILE
        swapbacked = found & Pg.SWAPBACKED != 0
        runs = cpus["mm"] == state.mm_slots.address(mm)
        for counter, kind, pages in (
            ("rss_anon", "anonymous pages", ~of_file),
            ("rss_file", "pages of files", of_file & ~swapbacked),
            ("rss_shmem", "pages of shared memory", of_file & swapbacked),
        ):
            mapped = np.count_nonzero(pages)
            kept, synced = int(cpus[counter][runs].sum()), int(state.segment.mms[counter][mm])
            if synced + kept != mapped:
                state.findings.add(
                    f"mm {mm} counts {synced} {kind} ({kept} more on its CPUs), but {mapped} are "
                    f"mapped ({mapped * PAGE_SIZE} bytes)"
                )
