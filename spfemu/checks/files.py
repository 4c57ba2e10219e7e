# SPDX-License-Identifier: MIT
"""Files: open or free, counted right, and known to all VMAs that map them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from spfemu.checks.findings import Slots, Words, walk
from spfemu.checks.state import State
from spfemu.layout import VMA
from spfemu.mm.flags import FileOps, Fmode, Vm
from spfemu.mm.vma import SlabState

FMODE_ALL = int(Fmode.READ | Fmode.WRITE)


def check_files(state: State) -> None:
    """Check open files, what they are open on, and the VMAs that map that."""
    _check_open_files(state)
    _check_mappings(state)
    linked: dict[int, list[int]] = {}
    for mm, members in state.vmas.items():
        for index in map(int, members):
            mapping = _check_vma(state, mm, index)
            if mapping >= 0:
                linked.setdefault(mapping, []).append(index)
    for mapping in range(state.mapping_slots.count):
        _check_i_mmap(state, mapping, set(linked.get(mapping, [])))


def _in_use(state: State, slots: Slots, counts: Words, links: Words, head: int) -> Words:
    """Return which slots are in use; report those that are neither that nor free."""
    name = f"the list of free {slots.name}s"
    free = walk(state.findings, name, slots, slots.indexes(links).tolist(), head)
    used: Words = counts != 0
    state.findings.each(
        [i for i in free if used[i]], lambda i: f"{slots.describe(i)} is free and in use"
    )
    state.findings.each(
        sorted(set(np.flatnonzero(~used).tolist()) - set(free)),
        lambda i: f"{slots.describe(i)} is lost: neither free nor in use",
    )
    return used


def _check_open_files(state: State) -> None:
    """Check that each FILE counts its descriptors and the VMAs that have it."""
    files, vmas, slots = state.segment.files, state.segment.vmas, state.file_slots
    head = int(state.segment.system["file_free"])
    used = _in_use(state, slots, files["f_count"], files["next_free"], head)
    # a VMA that waits for its grace period still has its file
    mapped = slots.indexes(vmas["vm_file"][vmas["slab_state"] != SlabState.FREE])
    expected = np.bincount(mapped[mapped >= 0], minlength=slots.count) + files["descriptors"]
    wrong = used & ((files["f_count"] != expected) | (files["descriptors"] < 0))
    state.findings.each(
        np.flatnonzero(wrong),
        lambda i: (
            f"{slots.describe(i)} has f_count {files['f_count'][i]}, but {expected[i]} are its "
            f"descriptors and VMAs"
        ),
    )
    mappings = state.mapping_slots.indexes(files["f_mapping"])
    bad = used & ((mappings < 0) | (files["f_mode"] & ~FMODE_ALL != 0))
    state.findings.each(
        np.flatnonzero(bad),
        lambda i: (
            f"{slots.describe(i)} has f_mapping {files['f_mapping'][i]:#x} and f_mode "
            f"{files['f_mode'][i]:#x}"
        ),
    )


def _check_mappings(state: State) -> None:
    """Check that each ADDRESS_SPACE counts the FILEs that are open on it."""
    files, mappings, slots = state.segment.files, state.segment.mappings, state.mapping_slots
    head = int(state.segment.system["mapping_free"])
    used = _in_use(state, slots, mappings["i_count"], mappings["next_free"], head)
    opened = Counter(slots.indexes(files["f_mapping"][files["f_count"] != 0]).tolist())
    state.findings.each(
        [i for i in np.flatnonzero(used).tolist() if mappings["i_count"][i] != opened[i]],
        lambda i: (
            f"{slots.describe(i)} has i_count {mappings['i_count'][i]}, but {opened[i]} are open"
        ),
    )
    kinds = np.isin(mappings["i_fop"], [int(kind) for kind in FileOps])
    state.findings.each(
        np.flatnonzero(used & (~kinds | (mappings["i_size"] < 0))),
        lambda i: (
            f"{slots.describe(i)} has i_fop {mappings['i_fop'][i]} and i_size "
            f"{mappings['i_size'][i]}"
        ),
    )


def _check_vma(state: State, mm: int, index: int) -> int:
    """Check what one VMA says about its file; returns the index of the file, or below 0."""
    segment, add = state.segment, state.findings.add
    vma = segment.vmas[index]
    name = f"mm {mm}: {state.describe_vma(index)}"
    flags, vm_ops = int(vma["vm_flags"]), int(vma["vm_ops"])
    if flags & Vm.SHARED and not flags & Vm.MAYSHARE:
        add(f"{name} is VM_SHARED without VM_MAYSHARE")
    file = state.file_slots.index(int(vma["vm_file"]))
    if file < 0:
        if int(vma["vm_file"]) or vm_ops or flags & Vm.MAYSHARE:
            add(f"{name} has vm_file {int(vma['vm_file']):#x} and vm_ops {vm_ops}")
        return -1
    mapping = state.mapping_slots.index(int(segment.files["f_mapping"][file]))
    if mapping < 0:
        return -1
    if vm_ops == FileOps.NO_MMAP or vm_ops != int(segment.mappings["i_fop"][mapping]):
        add(f"{name} has vm_ops {vm_ops}, not those of {state.mapping_slots.describe(mapping)}")
    mode = int(segment.files["f_mode"][file])
    if not mode & Fmode.READ or (flags & Vm.SHARED and not mode & Fmode.WRITE):
        add(f"{name} maps {state.file_slots.describe(file)}, whose f_mode {mode:#x} forbids it")
    return mapping


def _check_i_mmap(state: State, mapping: int, linked: set[int]) -> None:
    """Check that the VMAs that map a file are on its list, once each."""
    vmas, slots = state.segment.vmas, state.vma_slots
    name = f"i_mmap of {state.mapping_slots.describe(mapping)}"
    head = int(state.segment.mappings["i_mmap"][mapping])
    links = slots.indexes(vmas["shared_next"]).tolist()
    listed = walk(state.findings, name, slots, links, head)
    prev = 0
    for index in listed:
        if int(vmas["shared_prev"][index]) != prev:
            state.findings.add(
                f"{name}: {state.describe_vma(index)} has shared_prev "
                f"{int(vmas['shared_prev'][index]):#x} instead of {prev:#x}"
            )
        prev = state.segment.address["vmas"] + index * VMA.SIZE
    state.findings.each(
        sorted(set(listed) - linked),
        lambda i: f"{name} lists {state.describe_vma(i)}, which does not map the file",
    )
    state.findings.each(
        sorted(linked - set(listed)),
        lambda i: f"{name} lacks {state.describe_vma(i)}, which maps the file",
    )
