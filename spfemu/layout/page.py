# SPDX-License-Identifier: MIT
"""Frames, huge frames and the slots to which they are swapped out."""

from spfemu.layout.struct import Struct, word

PAGE_SHIFT = 12
PAGE_SIZE = 4096
PAGE_MASK = -PAGE_SIZE


class PAGE(Struct, size=64):
    """struct page: one cache line per frame."""

    flags = word("PageKind, and Pg bits", lock="owner of the frame; Pg bits: atomic")
    refcount = word("references; 0 = free", lock="atomic")
    mapcount = word("ptes that map the frame", lock="atomic, page-table lock")
    mapping = word(
        "anonymous: ANON_VMA plus 1; of a file: the ADDRESS_SPACE, 0 once it has left the cache; "
        "page table of pmds: the first deposited table",
        lock="page-table lock; of a file: xa_lock and the page lock",
    )
    index = word("linear page offset in its mapping", lock="page-table lock")
    ptl = word("page tables: the split page-table lock of the entries", lock="atomic")
    lru = word("next frame of the list that it is on, or 0", lock="list's")
    private = word(
        "page tables: mm; XA_NODE: bits of the index below it; chains: next chain; "
        "swap cache: entry",
        lock="owner of the frame, page lock",
    )


class HUGE_PAGE(Struct, pad_to_line=True):
    """A huge frame: 512 frames in a row, which are freed one by one and used again together."""

    live = word("frames of it that are in use", lock="atomic")
    next = word("next free huge frame or 0", lock="huge_lock")


class SWAP_SLOT(Struct, size=32):
    """A slot of the swap area (Linux 6.1: a byte of swap_map, and the swap cache's entry)."""

    count = word("ptes that hold its entry", lock="the cluster's lock")
    page = word("PAGE that the swap cache has for it, or 0", lock="the cluster's lock")
    next = word("next free slot of its cluster or 0", lock="the cluster's lock")


class SWAP_CLUSTER(Struct, pad_to_line=True):
    """Slots next to each other, with one lock (Linux 6.1: swap_cluster_info)."""

    lock = word("spinlock over its slots", lock="atomic")
    free = word("first free slot or 0", lock="lock")
    nr_free = word("free slots", lock="lock")
    nr_slots = word("slots")
