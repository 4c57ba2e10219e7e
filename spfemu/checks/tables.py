# SPDX-License-Identifier: MIT
"""Page tables: each belongs to some VMA, each entry has the rights that its VMA gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spfemu.checks.anon_vmas import inherited
from spfemu.checks.findings import Words
from spfemu.checks.huge import check_huge_entries, claim_deposited
from spfemu.checks.state import Mappings, State
from spfemu.checks.swap import is_swap_pte
from spfemu.layout import PAGE_SHIFT, WORD
from spfemu.mm.flags import (
    PAGE_KIND_MASK,
    PGDIR_SHIFT,
    PMD_SHIFT,
    PTE_ADDR_MASK,
    PTRS_PER_TABLE,
    PUD_SHIFT,
    FileOps,
    PageKind,
    Pg,
    Pte,
    Vm,
)
from spfemu.mm.pgtable import TABLE_BITS

LEVELS = (("pgd", PGDIR_SHIFT), ("pud", PUD_SHIFT), ("pmd", PMD_SHIFT))
"""Tables whose entries name tables, with the shift of what one entry maps."""
ACCESS = int(Vm.READ | Vm.WRITE | Vm.EXEC)
KNOWN_BITS = PTE_ADDR_MASK | int(
    Pte.PRESENT
    | Pte.RW
    | Pte.USER
    | Pte.ACCESSED
    | Pte.DIRTY
    | Pte.SPECIAL
    | Pte.PROTNONE
    | Pte.NX
    | Pte.UFFD_WP
)


def check_tables(state: State, mm: int) -> None:
    """Walk the tables of one mm from the top, claim them and note their entries."""
    pgd = state.frame_slots.index(int(state.segment.mms["pgd"][mm]))
    if pgd < 0:
        state.findings.add(f"mm {mm}: pgd {int(state.segment.mms['pgd'][mm]):#x} is no frame")
        state.mappings[mm] = state.swapped[mm] = state.pmds[mm] = Mappings()
        return
    tables = state.frame_owners.claim([pgd], f"the page table (pgd) of mm {mm}")
    bases = np.zeros(len(tables), np.int64)
    count = len(tables)
    huge = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for level, shift in LEVELS:
        if level == "pmd":
            pmds = _entries(state, tables, bases, shift)
            state.pmds[mm] = Mappings.sort(*pmds)
            huge = check_huge_entries(state, mm, *pmds)
            starts = pmds[0][pmds[1] & Pte.PSE != 0]
            count += claim_deposited(state, mm, tables, starts, bases)
        tables, bases = _next_level(state, mm, level, shift, tables, bases)
        count += len(tables)
    found = int(state.segment.mms["pgtables"][mm])
    if found != count:
        state.findings.add(f"pgtables of mm {mm} is {found}, but it has {count} page tables")
    addresses, entries = _entries(state, tables, bases, PAGE_SHIFT)
    swap = is_swap_pte(entries)
    state.swapped[mm] = Mappings.sort(addresses[swap], entries[swap])
    state.mappings[mm] = Mappings.sort(
        np.concatenate([addresses[~swap], huge[0]]), np.concatenate([entries[~swap], huge[1]])
    )


def _entries(state: State, tables: Words, bases: Words, shift: int) -> tuple[Words, Words]:
    """Addresses that the entries of `tables` map, and the entries, where they are not empty."""
    segment = state.segment
    first = (state.frame_slots.start - segment.base) // WORD
    words = segment.words[first : first + segment.geometry.nr_frames * PTRS_PER_TABLE]
    contents = words.reshape(-1, PTRS_PER_TABLE)[tables]
    rows, columns = np.nonzero(contents)
    return bases[rows] + (columns.astype(np.int64) << shift), contents[rows, columns]


def _next_level(
    state: State, mm: int, level: str, shift: int, tables: Words, bases: Words
) -> tuple[Words, Words]:
    """Tables that the entries of `tables` name, with the lowest address of each."""
    addresses, entries = _entries(state, tables, bases, shift)
    if level == "pmd":
        table = entries & Pte.PSE == 0
        addresses, entries = addresses[table], entries[table]
    frames = state.frame_slots.indexes(entries & PTE_ADDR_MASK)
    bad = (frames < 0) | (entries & ~PTE_ADDR_MASK != TABLE_BITS)
    state.findings.each(
        np.flatnonzero(bad),
        lambda i: f"mm {mm}: the {level} entry of {addresses[i]:#x} is bad: {entries[i]:#x}",
    )
    addresses, frames = addresses[~bad], frames[~bad]
    fresh = state.frame_owners.claim(frames, f"a page table (below a {level} entry) of mm {mm}")
    unique, position = np.unique(frames, return_index=True)
    keep = position[np.isin(unique, fresh)]
    addresses, frames = addresses[keep], frames[keep]
    alone = ~_covers_vma(state, mm, addresses, 1 << shift)
    state.findings.each(
        np.flatnonzero(alone),
        lambda i: (
            f"mm {mm}: the page table below the {level} entry of {addresses[i]:#x}, "
            f"{state.frame_slots.describe(frames[i])}, covers no VMA"
        ),
    )
    return frames, addresses


def _covers_vma(state: State, mm: int, bases: Words, size: int) -> NDArray[np.bool_]:
    """Tell for each range whether a VMA lies in it, at least in part.

    A fault makes tables for its VMA only, and who unmaps the last VMA in the range of a table
    frees it (free_pgtables looks at the whole hole), so at rest there is no table without one.
    """
    members = state.segment.vmas[state.vmas[mm]]
    if not len(members):
        return np.zeros(len(bases), np.bool_)
    below = np.searchsorted(members["vm_start"], bases + size) - 1
    return (below >= 0) & (np.maximum.accumulate(members["vm_end"])[below] > bases)


def _outside(vmas: NDArray[Any], addresses: Words) -> NDArray[np.bool_]:
    """Tell which addresses lie in none of the VMAs, which are sorted by address."""
    position = np.searchsorted(vmas["vm_start"], addresses, "right") - 1
    outside = position < 0
    outside[~outside] = addresses[~outside] >= vmas["vm_end"][position[~outside]]
    return outside


def check_entries(state: State, mm: int) -> None:
    """Check every pte against its VMA and its frame."""
    mappings = state.mappings[mm]
    addresses, entries = mappings.address, mappings.entry
    members = state.vmas[mm]
    vmas = state.segment.vmas[members]
    position = np.searchsorted(vmas["vm_start"], addresses, "right") - 1
    inside = ~_outside(vmas, addresses)

    def report(wrong: NDArray[np.bool_], what: Callable[[int], str]) -> None:
        state.findings.each(
            np.flatnonzero(wrong),
            lambda i: f"mm {mm}: the pte of {addresses[i]:#x} ({entries[i]:#x}) {what(i)}",
        )

    report(~inside, lambda _: "lies in no VMA")
    swapped = state.swapped[mm]
    outside = _outside(vmas, swapped.address)
    state.findings.each(
        np.flatnonzero(outside),
        lambda i: f"mm {mm}: the swap entry of {swapped.address[i]:#x} lies in no VMA",
    )
    flags = np.where(inside, vmas["vm_flags"][position] if len(vmas) else 0, 0)
    vma_ops = np.where(inside, vmas["vm_ops"][position] if len(vmas) else 0, 0)

    def vma_of(i: int) -> str:
        return state.describe_vma(int(members[position[i]]))

    present = entries & Pte.PRESENT != 0
    protnone = entries & Pte.PROTNONE != 0
    accessible = flags & ACCESS != 0
    report(inside & present & ~accessible, lambda i: f"is present, but {vma_of(i)} gives no access")
    # with several nodes, a scan may have made it fault
    hinting = (state.segment.geometry.nr_nodes > 1) & (vma_ops == 0)
    report(inside & protnone & accessible & ~hinting, lambda i: f"is PROT_NONE in {vma_of(i)}")
    report(present == protnone, lambda _: "is neither present nor PROT_NONE, or both")
    writable = entries & Pte.RW != 0
    report(inside & writable & (flags & Vm.WRITE == 0), lambda i: f"is writable in {vma_of(i)}")
    executable = present & (entries & Pte.NX == 0)
    report(inside & executable & (flags & Vm.EXEC == 0), lambda i: f"is executable in {vma_of(i)}")
    report(entries & ~KNOWN_BITS != 0, lambda _: "has unknown bits")
    _check_frames_of(state, entries, report)
    _check_rmap(state, mm, inside, position)


def _check_frames_of(
    state: State,
    entries: Words,
    report: Callable[[NDArray[np.bool_], Callable[[int], str]], None],
) -> None:
    """Check that entries name frames, and the zero page as what it is."""
    frames = state.frame_slots.indexes(entries & PTE_ADDR_MASK)
    special = entries & Pte.SPECIAL != 0
    report(frames < 0, lambda _: "names no frame")
    report((frames == 0) & ~special, lambda _: "names the zero page and is not SPECIAL")
    report((frames > 0) & special, lambda _: "is SPECIAL and does not name the zero page")
    report((frames == 0) & (entries & Pte.RW != 0), lambda _: "makes the zero page writable")


def _check_rmap(state: State, mm: int, inside: NDArray[np.bool_], position: Words) -> None:
    """Check that mapped frames say where they are mapped (protocol `bare` has none say it)."""
    mappings = state.mappings[mm]
    frames = state.frame_slots.indexes(mappings.entry & PTE_ADDR_MASK)
    chosen = np.flatnonzero(inside & (frames > 0))
    frames, addresses = frames[chosen], mappings.address[chosen]
    vmas = state.segment.vmas[state.vmas[mm]][position[chosen]]
    pages = state.segment.pages[frames]
    says = pages["mapping"] != 0
    mapping = np.where(is_file(pages), file_mappings(state, vmas), vmas["anon_vma"] | 1)
    members = state.vmas[mm][position[chosen]]
    wrong = [
        i
        for i in np.flatnonzero(says & (pages["mapping"] != mapping))
        # a page mapped before a fork is its parent's
        if int(pages["mapping"][i]) - 1 not in inherited(state, int(members[i]))
    ]
    _check_rights_to_files(state, mm, addresses, mappings.entry[chosen], vmas, pages)
    index = ((addresses - vmas["vm_start"]) >> PAGE_SHIFT) + vmas["vm_pgoff"]
    state.findings.each(
        wrong,
        lambda i: (
            f"mm {mm}: {state.frame_slots.describe(frames[i])}, mapped at {addresses[i]:#x}, has "
            f"mapping {pages['mapping'][i]:#x} instead of {mapping[i]:#x}"
        ),
    )
    state.findings.each(
        np.flatnonzero(says & (pages["index"] != index)),
        lambda i: (
            f"mm {mm}: {state.frame_slots.describe(frames[i])}, mapped at {addresses[i]:#x}, has "
            f"index {pages['index'][i]:#x} instead of {index[i]:#x}"
        ),
    )


def is_file(pages: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which of these frames are pages of files."""
    found: NDArray[np.bool_] = pages["flags"] & PAGE_KIND_MASK == PageKind.FILE
    return found


def file_mappings(state: State, vmas: NDArray[Any]) -> Words:
    """Addresses of the ADDRESS_SPACEs that VMAs map, 0 for those that map none."""
    files = state.file_slots.indexes(vmas["vm_file"])
    known = state.segment.files["f_mapping"]
    return np.where(files >= 0, known[np.maximum(files, 0)] if len(known) else 0, 0)


def _check_rights_to_files(
    state: State, mm: int, addresses: Words, entries: Words, vmas: NDArray[Any], pages: NDArray[Any]
) -> None:
    """Check that who writes to a file may, and that a file knows which of its pages are written."""
    shared = vmas["vm_flags"] & Vm.SHARED != 0
    writable = (entries & Pte.RW != 0) & is_file(pages)
    noticed = (vmas["vm_ops"] != FileOps.GENERIC) | (pages["flags"] & Pg.DIRTY != 0)
    for wrong, what in (
        (shared & ~is_file(pages), "maps a private page in a shared mapping"),
        (writable & ~shared, "lets a private mapping write to a file"),
        (writable & shared & ~noticed, "is writable, but the page is not dirty"),
    ):
        state.findings.each(
            np.flatnonzero(wrong),
            lambda i, what=what: f"mm {mm}: the pte of {addresses[i]:#x} ({entries[i]:#x}) {what}",  # type: ignore[misc]
        )
