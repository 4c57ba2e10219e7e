# SPDX-License-Identifier: MIT
"""VMAs, and the anon_vmas that group them."""

from spfemu.layout.locks import RWSEM
from spfemu.layout.struct import Struct, embed, word


class ANON_VMA_CHAIN(Struct):
    """anon_vma_chain: says that a VMA may map pages of an anon_vma."""

    vma = word("the VMA", lock="anon_vma lock")
    anon_vma = word("the ANON_VMA; 0: not linked", lock="mmap_lock")
    same_vma = word("next chain of the VMA or 0, from newest to oldest", lock="mmap_lock")
    next = word("next chain of the ANON_VMA or 0", lock="anon_vma lock")
    prev = word("previous chain of the ANON_VMA or 0", lock="anon_vma lock")


class VMA(Struct, pad_to_line=True):
    """vm_area_struct (Linux 5.12); a speculative fault copies the words before `slab_state`.

    The words from `vm_lock_seq` on belong to protocols that lock or count single VMAs.  The 6.4
    kernel keeps `vm_lock_seq` and `detached` beside `vm_flags`; here they come after what is
    copied, so that the copy costs the same under every protocol.

    After ``vm_area_free`` has queued the VMA, its RCU callback links overlay the first words,
    as in the patch set: a late reader sees garbage there.
    """

    vm_start = word("first address [bytes]", lock="mmap_lock")
    vm_end = word("address behind the last byte [bytes]", lock="mmap_lock")
    vm_next = word("next VMA by address, or 0", lock="mmap_lock")
    vm_prev = word("previous VMA by address, or 0", lock="mmap_lock")
    rb_left = word("left child or 0", lock="mmap_lock")
    rb_right = word("right child or 0", lock="mmap_lock")
    rb_parent = word("parent or 0", lock="mmap_lock")
    rb_color = word("0 red, 1 black", lock="mmap_lock")
    rb_subtree_gap = word("largest gap before any VMA of this subtree [bytes]", lock="mmap_lock")
    vm_mm = word("the mm it belongs to", lock="mmap_lock")
    vm_page_prot = word("pte bits of a page mapped here", lock="mmap_lock")
    vm_flags = word("VM_* bits", lock="mmap_lock")
    anon_vma = word("ANON_VMA or 0", lock="page_table_lock and mmap_lock for reading")
    vm_ops = word("0: anonymous, else the FileOps of its file", lock="mmap_lock")
    vm_pgoff = word("page offset; address in pages for anonymous memory", lock="mmap_lock")
    vm_file = word("the FILE that it maps, or 0", lock="mmap_lock")
    slab_state = word("0 free, 1 in use, 2 waiting for a grace period", lock="owner")
    generation = word("counted up each time the slab slot is handed out", lock="owner")
    vm_lock_seq = word("mm_lock_seq of the last writer that locked it", lock="mmap_lock")
    detached = word("1 once it has left the tree", lock="mmap_lock")
    vm_sequence = word("odd while a writer changes this VMA", lock="mmap_lock")
    vm_ref_count = word("1 while in use, plus speculative faults inside", lock="atomic")
    vm_userfaultfd_ctx = word("the USERFAULTFD_CTX that serves its faults, or 0", lock="mmap_lock")

    # 6.4 allocates its lock apart from the VMA, 6.15 aligns vm_refcnt: either has its own line.
    vm_lock = embed(RWSEM, "lock of this VMA (6.4)", line=True)
    vm_refcnt = word("0 detached, else 1 plus readers, see vma_refcount.py (6.15)", lock="atomic")
    fault_count = word("faults inside, for protocol spf-counted", lock="atomic")

    avc = embed(ANON_VMA_CHAIN, "its first chain, which leads to `anon_vma`", line=True)
    shared_next = word("next VMA of the list i_mmap of its file, or 0", lock="i_mmap_rwsem")
    shared_prev = word("previous VMA of that list, or 0", lock="i_mmap_rwsem")

    # In the order of the first copy's; a build without CONFIG_VMA_LATCH never touches the line.
    latch_left = word("rb_left in the second copy of the tree", lock="mmap_lock", line=True)
    latch_right = word("rb_right there", lock="mmap_lock")
    latch_parent = word("rb_parent there", lock="mmap_lock")
    latch_color = word("rb_color there", lock="mmap_lock")


class ANON_VMA(Struct, pad_to_line=True):
    """anon_vma: what groups VMAs that may share anonymous pages."""

    refcount = word("chains to VMAs; of a root, also those that it is the root of", lock="lock")
    next_free = word("next free slot", lock="anon_vma_lock, or the CPU that caches the slot")
    generation = word("counted up each time the slot is handed out", lock="owner")
    in_use = word("1 while handed out", lock="owner")
    root = word("the ANON_VMA whose lock is taken, that of the first ancestor", lock="owner")
    lock = word("of a root: spinlock over it and all that descend from it", lock="atomic")
    head = word("first chain or 0", lock="lock")
    degree = word("VMAs that point here plus ANON_VMAs whose parent this is", lock="lock")
    parent = word("ANON_VMA of the VMA that was forked, or 0", lock="owner")
