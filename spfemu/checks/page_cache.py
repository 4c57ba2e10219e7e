# SPDX-License-Identifier: MIT
"""Page caches: each page at one place, where it says that it is, and within its file."""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import Words
from spfemu.checks.state import State
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE, WORD
from spfemu.mm.flags import FileOps, PageKind, Pg
from spfemu.mm.xarray import XA_CHUNK_MASK, XA_CHUNK_SHIFT

NODE_WORDS = XA_CHUNK_MASK + 1
HIGHEST_SHIFT = 27


def check_page_caches(state: State) -> None:
    """Walk the index of each file, claim its nodes, check its pages and note them in `cached`."""
    mappings = state.segment.mappings
    for index in range(state.mapping_slots.count):
        root = int(mappings["i_pages"][index])
        if mappings["i_count"][index] == 0:
            if root:
                name = state.mapping_slots.describe(index)
                state.findings.add(f"{name} is free, but has pages")
            continue
        offsets, entries = _walk(state, index, root) if root else (_none(), _none())
        _check_pages(state, index, offsets, entries)


def _none() -> Words:
    return np.zeros(0, np.int64)


def _walk(state: State, mapping: int, root: int) -> tuple[Words, Words]:
    """Indexes and entries of all pages of a file, by rising index."""
    segment, name = state.segment, f"the page cache of {state.mapping_slots.describe(mapping)}"
    first = (state.frame_slots.start - segment.base) // WORD
    words = segment.words[first : first + segment.geometry.nr_frames * NODE_WORDS]
    nodes, bases = _claim_nodes(state, name, np.asarray([root]), np.zeros(1, np.int64))
    shift = int(segment.pages["private"][nodes[0]]) if len(nodes) else -1
    if shift not in range(0, HIGHEST_SHIFT + 1, XA_CHUNK_SHIFT):
        if len(nodes):
            state.findings.add(f"{name} has a root with {shift} bits below it")
        return _none(), _none()
    while True:
        wrong = segment.pages["private"][nodes] != shift
        state.findings.each(
            nodes[wrong],
            lambda i: f"{name}: {state.frame_slots.describe(int(i))} is a node of another level",
        )
        contents = words.reshape(-1, NODE_WORDS)[nodes]
        rows, columns = np.nonzero(contents)
        offsets = bases[rows] + (columns.astype(np.int64) << shift)
        entries = contents[rows, columns]
        if shift == 0:
            return offsets, entries
        nodes, bases = _claim_nodes(state, name, entries, offsets)
        shift -= XA_CHUNK_SHIFT


def _claim_nodes(state: State, name: str, addresses: Words, bases: Words) -> tuple[Words, Words]:
    """Frames of the nodes at `addresses`, with the first index below each."""
    frames = state.frame_slots.indexes(addresses)
    state.findings.each(
        addresses[frames < 0], lambda a: f"{name} leads to {int(a):#x}, which is no frame"
    )
    keep = frames >= 0
    fresh = state.frame_owners.claim(frames[keep], f"a node of {name}")
    state.nodes[fresh] = True
    keep[keep] = np.isin(frames[keep], fresh)
    return frames[keep], bases[keep]


def _check_pages(state: State, mapping: int, offsets: Words, entries: Words) -> None:
    """Check what each page says about itself, and the number of pages."""
    segment, name = state.segment, state.mapping_slots.describe(mapping)
    record = segment.mappings[mapping]
    if int(record["nrpages"]) != len(entries):
        state.findings.add(f"{name} counts {record['nrpages']} pages, but has {len(entries)}")
    frames = state.page_slots.indexes(entries)
    bad = frames < 0
    state.findings.each(
        np.flatnonzero(bad), lambda i: f"{name}: page {offsets[i]} is at {entries[i]:#x}, no page"
    )
    offsets, frames = offsets[~bad], frames[~bad]
    np.add.at(state.cached, frames, 1)
    pages = segment.pages[frames]
    swapbacked = int(Pg.SWAPBACKED) if record["i_fop"] == FileOps.SHMEM else 0
    expected = {
        "mapping": state.mapping_slots.address(mapping) + np.zeros(len(frames), np.int64),
        "index": offsets,
        "flags": PageKind.FILE | Pg.UPTODATE | swapbacked | (pages["flags"] & Pg.DIRTY),
    }
    for field, values in expected.items():
        state.findings.each(
            np.flatnonzero(pages[field] != values),
            lambda i, field=field, values=values: (  # type: ignore[misc]
                f"{name}: page {offsets[i]}, {state.frame_slots.describe(int(frames[i]))}, has "
                f"{field} {pages[field][i]:#x} instead of {values[i]:#x}"
            ),
        )
    size = (int(record["i_size"]) + PAGE_SIZE - 1) >> PAGE_SHIFT
    state.findings.each(offsets[offsets >= size], lambda i: f"{name}: page {i} lies beyond its end")
