# SPDX-License-Identifier: MIT
"""The page cache's index: from page numbers of a file to pages (Linux 5.12, lib/xarray.c).

A tree of nodes of 512 slots, as high as the largest index needs.  Lookups take no lock and need
rcu_read_lock: a page may leave the tree meanwhile, and is kept for a grace period then.  Changes
are made under xa_lock.  Differs from the kernel in that a node is a frame (the kernel's has 64
slots), and in that nodes stay until the file is gone, so they need no grace period.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, PAGE, WORD
from spfemu.mm.flags import PageKind
from spfemu.mm.page_alloc import (
    alloc_zeroed_page,
    free_page,
    memalloc_noreclaim_restore,
    memalloc_noreclaim_save,
    page_address,
    virt_to_page,
)
from spfemu.primitives import load, read_once, smp_store_release, store

XA_CHUNK_SHIFT = 9
XA_CHUNK_MASK = (1 << XA_CHUNK_SHIFT) - 1
XA_MAX_INDEX = (1 << 36) - 1
"""Largest index: four levels.  It makes files of at most 256 TiB."""


@kernel
def xa_slot(node: int, index: int, shift: int) -> int:
    """Address of the slot of `node` for `index`; below it are `shift` bits of the index."""
    return node + ((index >> shift) & XA_CHUNK_MASK) * WORD


@kernel
def xa_node_shift(cpu: int, node: int) -> int:
    """How many bits of the index the nodes below `node` decide; it never changes."""
    return load(virt_to_page(cpu, node) + PAGE.private)


@kernel
def xa_walk(cpu: int, mapping: int, index: int) -> int:
    """Return the address of the slot of `index`, or 0 if the tree has none.

    Needs rcu_read_lock or xa_lock.  Each step depends on the address that the last has read, which
    pairs with the releases in `xa_expand` and `xa_create`.
    """
    node = read_once(mapping + ADDRESS_SPACE.i_pages)
    if node == 0:
        return 0
    shift = xa_node_shift(cpu, node)
    if index >> (shift + XA_CHUNK_SHIFT) != 0:
        return 0
    while shift != 0 and node != 0:
        node = read_once(xa_slot(node, index, shift))
        shift -= XA_CHUNK_SHIFT
    return xa_slot(node, index, 0) if node != 0 else 0


@kernel
def xa_load(cpu: int, mapping: int, index: int) -> int:
    """Return the entry at `index`, or 0; needs what `xa_walk` needs."""
    slot = xa_walk(cpu, mapping, index)
    return read_once(slot) if slot != 0 else 0


@slowpath
def xa_find(cpu: int, mapping: int, index: int) -> tuple[int, int]:
    """Return the first (index, entry) from `index` on, or (-1, 0); needs what `xa_load` needs."""
    root = read_once(mapping + ADDRESS_SPACE.i_pages)
    if root == 0:
        return -1, 0
    top = xa_node_shift(cpu, root)
    while index >> (top + XA_CHUNK_SHIFT) == 0:
        shift = top
        entry = read_once(xa_slot(root, index, shift))
        while shift != 0 and entry != 0:
            shift -= XA_CHUNK_SHIFT
            entry = read_once(xa_slot(entry, index, shift))
        if entry != 0:
            return index, entry
        # nothing below this slot
        index = ((index >> shift) + 1) << shift
    return -1, 0


@kernel
def xa_node_alloc(cpu: int, shift: int) -> int:
    """Return an empty node, or 0 if there is no frame; nothing is reclaimed with the lock held."""
    memalloc_noreclaim_save(cpu)
    page = alloc_zeroed_page(cpu, PageKind.XA_NODE)
    memalloc_noreclaim_restore(cpu)
    if page == 0:
        return 0
    store(page + PAGE.private, shift)
    return page_address(cpu, page)


@slowpath
def xa_expand(cpu: int, mapping: int, index: int) -> int:
    """See that the tree is high enough for `index`; 0, or 1 if out of memory (xas_expand)."""
    node = load(mapping + ADDRESS_SPACE.i_pages)
    shift = xa_node_shift(cpu, node) if node != 0 else -XA_CHUNK_SHIFT
    while index >> (shift + XA_CHUNK_SHIFT) != 0 or shift < 0:
        shift += XA_CHUNK_SHIFT
        if node == 0 and index >> (shift + XA_CHUNK_SHIFT) != 0:
            continue
        above = xa_node_alloc(cpu, shift)
        if above == 0:
            return 1
        store(above, node)
        node = above
        smp_store_release(mapping + ADDRESS_SPACE.i_pages, node)
    return 0


@slowpath
def xa_create(cpu: int, mapping: int, index: int) -> int:
    """Return the address of the slot of `index`, or 0 if out of memory; needs xa_lock.

    A node is stored with release: who finds it finds it empty.
    """
    if xa_expand(cpu, mapping, index) != 0:
        return 0
    node = load(mapping + ADDRESS_SPACE.i_pages)
    shift = xa_node_shift(cpu, node)
    slot = xa_slot(node, index, shift)
    while shift != 0:
        shift -= XA_CHUNK_SHIFT
        node = load(slot)
        if node == 0:
            node = xa_node_alloc(cpu, shift)
            if node == 0:
                return 0
            smp_store_release(slot, node)
        slot = xa_slot(node, index, shift)
    return slot


@slowpath
def xa_destroy(cpu: int, mapping: int) -> None:
    """Free all nodes of a tree without entries that nobody can look anything up in any more."""
    node = load(mapping + ADDRESS_SPACE.i_pages)
    store(mapping + ADDRESS_SPACE.i_pages, 0)
    while node != 0:
        node = xa_free_leftmost(cpu, node)


@kernel
def xa_free_leftmost(cpu: int, root: int) -> int:
    """Free one node without children below `root`, or `root` itself; returns what is left."""
    above = 0
    node = root
    while True:
        slot = xa_first_child(cpu, node)
        if slot == 0:
            break
        above = slot
        node = load(slot)
    if above != 0:
        store(above, 0)
    page = virt_to_page(cpu, node)
    store(page + PAGE.refcount, 0)
    free_page(cpu, page)
    return root if above != 0 else 0


@kernel
def xa_first_child(cpu: int, node: int) -> int:
    """Address of the first slot of `node` that names a node, or 0."""
    if xa_node_shift(cpu, node) == 0:
        return 0
    for i in range(XA_CHUNK_MASK + 1):
        if load(node + i * WORD) != 0:
            return node + i * WORD
    return 0
