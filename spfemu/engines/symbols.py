# SPDX-License-Identifier: MIT
"""Names of addresses inside a segment, for messages: ``mm0.mmap_lock.count``, ``page[7].ptl``."""

from __future__ import annotations

from spfemu.events import Event
from spfemu.layout import (
    ADDRESS_SPACE,
    ANON_VMA,
    ANON_VMA_CHAIN,
    CPU,
    FILE,
    HISTOGRAM,
    HUGE_PAGE,
    MM,
    MMU_NOTIFIER,
    PAGE,
    PAGE_SIZE,
    SHADOW,
    STRESS,
    STRESS_CPU,
    SWAP_CLUSTER,
    SWAP_SLOT,
    SYSTEM,
    USERFAULTFD_CTX,
    VMA,
    VMA_STAMPS,
    WORD,
    Struct,
)
from spfemu.segment import Segment

_STRUCTS = {struct.__name__: struct for struct in Struct.ALL}
_ARRAYS: dict[str, tuple[str, type[Struct]]] = {
    "cpus": ("cpu{}", CPU),
    "mms": ("mm{}", MM),
    "histograms": ("histogram[{}]", HISTOGRAM),
    "anon_vmas": ("anon_vma[{}]", ANON_VMA),
    "avcs": ("avc[{}]", ANON_VMA_CHAIN),
    "files": ("file[{}]", FILE),
    "mappings": ("mapping[{}]", ADDRESS_SPACE),
    "notifiers": ("notifier[{}]", MMU_NOTIFIER),
    "uffds": ("uffd[{}]", USERFAULTFD_CTX),
    "swap_slots": ("swap_slot[{}]", SWAP_SLOT),
    "swap_clusters": ("swap_cluster[{}]", SWAP_CLUSTER),
    "vmas": ("vma[{}]", VMA),
    "stress_area": ("stress", STRESS),
    "shadow": ("shadow[{}]", SHADOW),
    "stress_cpus": ("stress_cpu[{}]", STRESS_CPU),
    "vma_stamps": ("vma_stamps[{}]", VMA_STAMPS),
    "vmemmap": ("page[{}]", PAGE),
    "huge_pages": ("huge_page[{}]", HUGE_PAGE),
}

_WORDS = ("scratch", "trace", "model")
_PAGES = {"frames": "frame", "swap_area": "swap"}


def symbol(segment: Segment, address: int) -> str | None:
    """Name what `address` points at; None if it lies outside the segment's areas."""
    offset = address - segment.base
    for area, (start, size) in segment.geometry.areas().items():
        if start <= offset < start + size:
            return _inside(area, offset - start)
    return None


def _inside(area: str, offset: int) -> str:
    if area == "system":
        return "system" + _field(SYSTEM, offset)
    if area in _WORDS:
        return f"{area}[{offset // WORD}]"
    if area in _PAGES:
        number, byte = divmod(offset, PAGE_SIZE)
        return f"{_PAGES[area]}[{number}]" + (f"+{byte:#x}" if byte else "")
    name, struct = _ARRAYS[area]
    index, rest = divmod(offset, struct.SIZE)
    return name.format(index) + (_field(struct, rest) if rest else "")


def _field(struct: type[Struct], offset: int) -> str:
    for field in struct.FIELDS:
        rest = offset - field.offset
        if not 0 <= rest < field.words * WORD:
            continue
        embedded = _STRUCTS.get(field.lock.removeprefix("see "))
        if embedded is not None:
            return f".{field.name}{_field(embedded, rest)}"
        if field.words == 1:
            return f".{field.name}"
        index = rest // WORD
        if struct is CPU and field.name == "event" and index in set(Event):
            return f".event[{Event(index).name}]"
        return f".{field.name}[{index}]"
    return f"+{offset:#x}"
