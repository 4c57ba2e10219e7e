# SPDX-License-Identifier: MIT
"""Every struct of the shared segment, declared once.

A struct is a class whose attributes are fields::

    class RWSEM(Struct):
        count = word("state word", lock="atomic")

After the class body has run, ``RWSEM.count`` is the *byte offset* of the field, ``RWSEM.SIZE``
the size in bytes, ``RWSEM.dtype`` the NumPy structured dtype and ``RWSEM.FIELDS`` the
declarations.  Kernel functions add the offset to a struct's address; the compiler folds it.

All words are signed 64-bit integers: mixing signedness would make NumPy compute in ``float64``.
A field that starts with ``line=True`` begins a new 64-byte cache line.  Fields bounce together
exactly where they share a line, so the order of fields here is part of what is measured.

The ``lock`` of a field says what must be held to write it (``atomic``: by atomic operations,
``owner``: by the CPU that owns the block only, ``init``: before workers start).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

WORD = 8
CACHE_LINE = 64
PAGE_SHIFT = 12
PAGE_SIZE = 4096
PAGE_MASK = -PAGE_SIZE

CPUMASK_SHIFT = 5
"""An mm's cpumask has 32 CPUs in a word: the sign bit stays out of the way of shifts."""
NR_CPUS_MAX = 512
"""Most CPUs in one segment (the width of an mm's cpumask)."""
TLB_ENTRIES = 64
"""Entries of the direct-mapped software TLB (the L1 data TLB of current x86 cores has 64-96)."""
VMACACHE_SIZE = 4
"""Entries of the per-thread VMA cache (Linux 5.12, include/linux/mm_types_task.h)."""
GATHER_SHARED = 56
"""Frames that others map too which a gather holds before it has to flush."""
NR_STAMPS = 7
"""States of a VMA that are remembered: more than writers go through while one is copied."""
NOTIFIER_SHADOW = 16
"""Entries of the direct-mapped translation table of an MMU notifier's subscriber."""
GUP_PAGES = 15
"""Most frames that a CPU's thread has pinned at once."""
SWAP_CLUSTER_MAX = 32
"""Pages that a reclaimer collects before it evicts them (include/linux/swap.h)."""
NR_NODES_MAX = 8
"""Most NUMA nodes in one segment."""
HISTORY_ENTRIES = 4096
"""Steps that the history of a CPU holds, in a stress run."""
HISTORY_WORDS = 3
"""Words of each."""
HELD_MAX = 256
"""Locks that a CPU is known to hold at a time: mm_take_all_locks takes two hundred."""
HELD_WORDS = 3
"""Words of the note on each: the lock, its class, 1 if it is held for writing."""
LOCK_CLASSES = 32
"""Room for classes of locks (see stress/lock_class.py)."""
SITES_MAX = 1 << 14
FOCUS_MAX = 512
"""Sites of instrumented code that may be chosen for delays."""
ZONE_WORDS = (NR_NODES_MAX - 1) * CACHE_LINE // WORD
"""Words of the zones of all nodes but the first."""
NR_EVENTS = 256
"""Counters that each CPU has room for."""
HIST_SUB_BITS = 5
HIST_BUCKETS = (64 - HIST_SUB_BITS) << HIST_SUB_BITS
"""Buckets of a log-linear histogram with 32 steps per power of two (at most 3.2 % wide)."""


@dataclass(frozen=True)
class Field:
    """One declared field: name, byte offset, number of words, what guards it, what it is."""

    name: str
    offset: int
    words: int
    lock: str
    doc: str


@dataclass(frozen=True)
class _Declared:
    words: int
    lock: str
    doc: str
    line: bool


def word(doc: str, *, lock: str = "init", line: bool = False, count: int = 1) -> int:
    """Declare `count` 64-bit words; `line` starts a new cache line."""
    return cast("int", _Declared(count, lock, doc, line))


def embed(struct: type[Struct], doc: str, *, line: bool = False) -> int:
    """Declare an embedded struct; its fields are reached by adding both offsets."""
    return cast("int", _Declared(struct.SIZE // WORD, "see " + struct.__name__, doc, line))


class Struct:
    """Base of all layout declarations; see the module's docstring."""

    SIZE: ClassVar[int] = 0
    FIELDS: ClassVar[tuple[Field, ...]] = ()
    ALL: ClassVar[list[type[Struct]]] = []
    dtype: ClassVar[np.dtype[Any]]

    def __init_subclass__(cls, *, size: int = 0, pad_to_line: bool = False) -> None:
        offset = 0
        fields = []
        for name, declared in list(vars(cls).items()):
            if not isinstance(declared, _Declared):
                continue
            if declared.line:
                offset = -(-offset // CACHE_LINE) * CACHE_LINE
            fields.append(Field(name, offset, declared.words, declared.lock, declared.doc))
            setattr(cls, name, offset)
            offset += declared.words * WORD
        if pad_to_line:
            offset = -(-offset // CACHE_LINE) * CACHE_LINE
        if size and offset > size:
            raise ValueError(f"{cls.__name__} needs {offset} bytes, more than its {size}")
        cls.SIZE = size or offset
        cls.FIELDS = tuple(fields)
        cls.dtype = np.dtype(
            {
                "names": [f.name for f in fields],
                "formats": ["<i8" if f.words == 1 else f"({f.words},)<i8" for f in fields],
                "offsets": [f.offset for f in fields],
                "itemsize": cls.SIZE,
            }
        )
        Struct.ALL.append(cls)


class RWSEM(Struct):
    """rw_semaphore (Linux 5.12, include/linux/rwsem.h)."""

    count = word("reader count and flag bits, see mm/rwsem.py", lock="atomic")
    owner = word(
        "CPU of the owner plus one (a reader: the last known), RWSEM_* flags", lock="count"
    )
    osq = word("tail of the optimistic spin queue: CPU plus one, or 0", lock="atomic")
    wait_lock = word("spinlock over the waiter list", lock="atomic")
    wait_head = word("first waiter (address of an RWSEM_WAITER) or 0", lock="wait_lock")
    wait_tail = word("last waiter or 0", lock="wait_lock")


class RWSEM_WAITER(Struct):
    """A CPU queued on an rw_semaphore; lives in its CPU block."""

    next = word("next waiter or 0", lock="wait_lock")
    prev = word("previous waiter or 0", lock="wait_lock")
    type = word("0 waits for reading, 1 for writing, 2 was granted the lock", lock="wait_lock")
    task = word("futex word: bit 0 while waiting, bit 1 once signalled", lock="atomic")
    deadline = word("cycle count after which the waiter asks for handoff", lock="owner")
    cpu = word("address of the waiting CPU's block", lock="owner")


class PERCPU_RWSEM(Struct):
    """percpu_rw_semaphore (Linux 5.12, include/linux/percpu-rwsem.h); readers are in their CPUs."""

    rss = word("writers inside or coming: readers have to look at `block`", lock="atomic")
    block = word("1 while a writer has it or waits for the readers inside", lock="atomic")


class OSQ_NODE(Struct):
    """Node of the optimistic spin queue (Linux 5.12, kernel/locking/osq_lock.c)."""

    next = word("next node (address) or 0", lock="atomic")
    prev = word("previous node (address) or 0", lock="atomic")
    locked = word("1 when the queue's lock has been passed to this node", lock="atomic")


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


class FILE(Struct, pad_to_line=True):
    """struct file: an open file; references are those of descriptors and of VMAs."""

    f_count = word("references; 0: free", lock="atomic")
    f_mode = word("Fmode: opened for reading, for writing")
    f_mapping = word("the ADDRESS_SPACE of the file")
    descriptors = word("references among f_count that programs hold", lock="atomic")
    next_free = word("next free slot", lock="files_lock")


class ADDRESS_SPACE(Struct, pad_to_line=True):
    """address_space and its inode: a file, however often it is open, and who maps it."""

    i_count = word("FILEs that are open on it; 0: free", lock="atomic")
    i_fop = word("FileOps: what kind of file it is")
    i_size = word("length of the file [bytes]", lock="i_rwsem")
    next_free = word("next free slot", lock="files_lock")
    i_pages = word("root node of the page cache, or 0", lock="xa_lock")
    i_mmap_rwsem = embed(RWSEM, "lock of i_mmap and of the ranges of the VMAs on it", line=True)
    i_mmap = word("first VMA that maps the file, or 0", lock="i_mmap_rwsem")
    xa_lock = word("spinlock over i_pages and all below", lock="atomic", line=True)
    nrpages = word("pages in the cache", lock="xa_lock")
    i_rwsem = embed(RWSEM, "lock of the file's length", line=True)


class VMF(Struct):
    """vm_fault: what one fault carries along; one per CPU block."""

    vma = word("the VMA, or the address of its copy (pvma)", lock="owner")
    flags = word("FAULT_FLAG_* bits", lock="owner")
    address = word("page-aligned faulting address [bytes]", lock="owner")
    pmd = word("address of the pmd entry", lock="owner")
    orig_pmd = word("pmd entry as the walk read it", lock="owner")
    pte = word("address of the pte, or 0", lock="owner")
    orig_pte = word("pte as the walk read it", lock="owner")
    ptl = word("address of the page-table lock once held", lock="owner")
    seq = word("sequence count as read at the start of a speculative fault", lock="owner")
    orig_vma = word("the VMA that `vma` is a copy of, for who needs it again", lock="owner")
    pgoff = word("page of the file that belongs to the address", lock="owner")
    page = word("PAGE of the file, locked, with a reference", lock="owner")
    cow_page = word("PAGE for a private copy of it, or 0", lock="owner")


class GATHER(Struct):
    """mmu_gather: what an unmapper collected before its TLB flush; one per CPU block."""

    mm = word("mm being unmapped", lock="owner")
    pages = word("list of frames to free after the flush (PAGE addresses by lru)", lock="owner")
    nr_pages = word("their number", lock="owner")
    tables = word("list of page tables to free after the flush", lock="owner")
    nr_tables = word("their number", lock="owner")
    need_flush = word("a present pte was cleared", lock="owner")
    file_only = word("1: leave private copies of a file's pages alone", lock="owner")
    nr_shared = word("number of frames in `shared`", lock="owner")
    shared = word("PAGEs with other references, to put after the flush", count=GATHER_SHARED)


class RECLAIM(Struct):
    """What a CPU that reclaims memory carries along; one per CPU block."""

    nr_pages = word("pages collected", lock="owner")
    pages = word("PAGEs, each with a reference", lock="owner", count=SWAP_CLUSTER_MAX)
    nr_scanned = word("what the last try found that might be reclaimed", lock="owner")
    forbidden = word("not 0: allocations of this CPU must not reclaim", lock="owner")
    next_mm = word("index of the mm to begin with", lock="owner")
    swap_cluster = word("index of the cluster from which it takes slots", lock="owner")


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


class HUGE_PAGE(Struct, pad_to_line=True):
    """A huge frame: 512 frames in a row, which are freed one by one and used again together."""

    live = word("frames of it that are in use", lock="atomic")
    next = word("next free huge frame or 0", lock="huge_lock")


class MMU_NOTIFIER(Struct, pad_to_line=True):
    """A subscriber to changes of an mm's mappings, with what it has read: a secondary MMU's TLB."""

    mm = word("the mm; 0 once that is gone", lock="mmap_lock, mmu_notifier_lock")
    next = word("next subscriber of the mm, or next free slot", lock="as mm; notifier_slab_lock")
    in_use = word("1 while handed out", lock="owner")
    lock = word("spinlock over what follows", lock="atomic")
    in_progress = word("invalidations that have started and not ended", lock="lock")
    invalidate_seq = word("counted up at the end of each", lock="lock")
    nr_starts = word("invalidations that have started", lock="lock")
    nr_ends = word("invalidations that have ended", lock="lock")
    shadow = word("(address, frame) pairs", lock="lock", line=True, count=2 * NOTIFIER_SHADOW)


class USERFAULTFD_CTX(Struct, pad_to_line=True):
    """userfaultfd_ctx: who serves faults of some VMAs (Linux 5.12, fs/userfaultfd.c)."""

    lock = word("spinlock over the list of faults", lock="atomic")
    head = word("first UFFD_WAIT or 0", lock="lock")
    tail = word("last UFFD_WAIT or 0", lock="lock")
    event = word("futex word: counted up when a fault begins to wait", lock="atomic")
    refcount = word("1 while open, plus faults inside; 0: free", lock="atomic")
    released = word("1: being closed, no fault shall wait any more", lock="owner")
    mm = word("the mm of its VMAs", lock="owner")
    next_free = word("next free slot", lock="uffd_lock")


class UFFD_WAIT(Struct):
    """userfaultfd_wait_queue: a fault that waits for a monitor, with its message; one per CPU."""

    state = word("UffdState: 0 not queued, 1 pending, 2 read by the monitor", lock="context's")
    next = word("next UFFD_WAIT of the context or 0", lock="context's")
    prev = word("previous UFFD_WAIT of the context or 0", lock="context's")
    cpu = word("address of the waiting CPU's block", lock="owner")
    address = word("page that is missing or write-protected [bytes]", lock="owner")
    flags = word("MSG_* bits", lock="owner")


class RCU_QUEUE(Struct):
    """Callbacks of one CPU, oldest first (see mm/rcu.py)."""

    head = word("oldest queued object or 0", lock="owner")
    tail = word("newest queued object or 0", lock="owner")
    gp = word("grace period after whose end the wait list may be run", lock="owner")
    wait_head = word("objects waiting for grace period `gp`", lock="owner")
    nr = word("objects queued and waiting", lock="owner")
    scan_gp = word("grace period that `scan_cpu` is about", lock="owner")
    scan_cpu = word("first CPU not yet found quiescent in it", lock="owner")


class MM(Struct, pad_to_line=True):
    """mm_struct (Linux 5.12 with the speculative-page-fault series applied)."""

    mm_rb = word("root of the VMA tree or 0", lock="mmap_lock")
    mmap = word("first VMA by address or 0", lock="mmap_lock")
    vmacache_seqnum = word("counted up whenever cached VMAs become invalid", lock="mmap_lock")
    mmap_base = word("top of the area for new mappings [bytes]", lock="init")
    highest_vm_end = word("end of the highest VMA [bytes]", lock="mmap_lock")
    pgd = word("address of the top-level table", lock="init")
    id = word("index of this mm", lock="init")
    notifier_subscriptions = word("first MMU_NOTIFIER or 0", lock="mmap_lock, mmu_notifier_lock")

    mm_users = word("threads of the process", lock="atomic", line=True)
    map_count = word("number of VMAs", lock="mmap_lock")
    total_vm = word("pages mapped", lock="mmap_lock")
    start_brk = word("start of the heap [bytes]", lock="init")
    brk = word("end of the heap [bytes]", lock="mmap_lock")
    pgtables = word("page tables in use", lock="atomic")
    task_size = word("first address beyond user space [bytes]", lock="init")
    mmap_min_addr = word("lowest address that may be mapped [bytes]", lock="init")

    page_table_lock = word("spinlock over pgd, p4d and pud entries", lock="atomic", line=True)
    mmap_lock = embed(RWSEM, "the mmap lock")
    mmap_seq = word("odd while an mmap writer is inside", lock="mmap_lock for writing")

    mmap_seq_own = word("mmap_seq when it has a line of its own", lock="mmap_lock", line=True)

    # On the line behind that of the mmap lock, as in 6.4 with its larger lock.
    mm_lock_seq = word("counted up to unlock all VMAs", lock="mmap_lock for writing", line=True)
    vma_writer_wait = word("futex word: a VMA's last reader has left", lock="atomic")
    mm_seq = word("odd while the VMA tree changes, for protocol spf-vma", lock="mmap_lock")
    mm_rb_lock = word("read-write lock of the VMA tree, for protocol spf-vma-v11", lock="atomic")

    mm_rb_seq = word(
        "latch: odd while the first copy of the VMA tree changes", lock="mmap_lock", line=True
    )
    mm_rb_latch = word("root of the second copy or 0", lock="mmap_lock")

    write_protect_seq = word(
        "odd while a fork makes entries read-only", lock="mmap_lock for writing", line=True
    )
    has_pinned = word("1 once a frame has been pinned", lock="any thread, to 1")

    rss_anon = word("anonymous pages mapped, as far as synced", lock="atomic", line=True)
    rss_file = word("pages of files mapped, as far as synced", lock="atomic")
    rss_shmem = word("pages of shared memory mapped, as far as synced", lock="atomic")
    swap_ents = word("ptes that hold swap entries", lock="atomic")
    scan_address = word("where reclaim goes on [bytes]", lock="any; a hint")
    next_free = word("next free mm or 0", lock="mm_slots_lock")
    in_use = word("1 when set up", lock="init")
    tlb_gen = word("counted up before each TLB flush", lock="atomic", line=True)
    tlb_flush_pending = word("readers of the mmap lock about to flush", lock="atomic")
    cpumask = word("bit per CPU that runs this mm", lock="atomic", count=NR_CPUS_MAX // 32)

    def_flags = word("vm_flags of new mappings, from mlockall", lock="mmap_lock", line=True)
    locked_vm = word("pages of mappings with VM_LOCKED", lock="mmap_lock")
    data_vm = word("pages of private writable mappings", lock="mmap_lock")
    stack_vm = word("pages of stacks", lock="mmap_lock")
    rlimit_as = word("RLIMIT_AS [bytes]")
    rlimit_data = word("RLIMIT_DATA [bytes]")
    rlimit_memlock = word("RLIMIT_MEMLOCK [bytes]")
    rlimit_stack = word("RLIMIT_STACK [bytes]")
    numa_next_scan = word("cycle count from which the next scan is due", lock="atomic")
    numa_scan_offset = word("where it begins [bytes]", lock="who has moved numa_next_scan")
    mm_count = word("references to the struct; all users together are one", lock="atomic")

    mmu_notifier_lock = embed(PERCPU_RWSEM, "keeps subscribers from speculative copies", line=True)


class CPU(Struct, pad_to_line=True):
    """One worker: a CPU that runs one thread of an emulated process."""

    # What the owner reads on every path; constant while workers run.
    id = word("index of this CPU", line=True)
    mm = word("the mm that it runs")
    system = word("address of SYSTEM")
    vmemmap = word("address of the PAGE of frame 0")
    frames = word("address of frame 0")
    zero_pfn = word("address of the zero page")
    fault_overhead = word("cycles to spin in each fault")
    vma_slab_end = word("address behind the VMA slab")

    # What the owner changes all the time and nobody else touches.
    irqs_disabled = word("1 while interrupts are off", lock="owner", line=True)
    rcu_nesting = word("depth of rcu_read_lock", lock="owner")
    tlb_tag = word("generation bits that a valid TLB tag carries", lock="owner")
    tlb_gen = word("tlb_gen of the mm at the last flush", lock="owner")
    random = word("state of the CPU's random generator", lock="owner")
    rss_anon = word("change of rss_anon not yet synced", lock="owner")
    rss_events = word("changes since the last sync", lock="owner")
    mmap_lock_held = word(
        "0, 1 reading, 2 writing, 5 reading of another mm: for reclaim and crash reports",
        lock="owner",
    )
    pcp_list = word("chain of free frames in use", lock="owner")
    pcp_count = word("its length", lock="owner")
    pcp_spare = word("second chain, full or empty", lock="owner")
    pcp_spare_count = word("its length", lock="owner")
    vma_list = word("cached free VMAs", lock="owner")
    vma_count = word("their number", lock="owner")
    pde_tag = word("paging-structure cache: generation and address >> 21", lock="owner")
    pde = word("paging-structure cache: the pmd entry", lock="owner")

    # What others read or write.
    ipi_request = word("IPIs sent to this CPU", lock="atomic", line=True)
    ipi_done = word("IPIs served", lock="owner")
    state = word("a CpuState", lock="owner; while IDLE atomic")
    rcu_qs = word("newest grace period in which it was quiescent", lock="owner")
    fatal_signal = word("1: killable waits end with -EINTR", lock="atomic")
    percpu_read = word("the PERCPU_RWSEM that it holds for reading, or 0", lock="owner")
    drain_seq = word("SYSTEM.drain_seq that it has answered last", lock="owner")

    # What the parent samples.
    operations = word("operations finished", lock="owner", line=True)
    progress = word("counted up in the worker loop, for the watchdog", lock="owner")
    role = word("what it runs: a Role")
    failed = word("errno with which the workload gave up, or 0", lock="owner")
    failed_at = word("address or argument that goes with it", lock="owner")
    expected = word("what should have been there, where a workload checks it", lock="owner")
    found = word("what was there instead", lock="owner")

    vmf = embed(VMF, "the fault being handled", line=True)
    pvma = embed(VMA, "copy of the VMA for a speculative fault", line=True)
    gather = embed(GATHER, "the unmap being done", line=True)
    reclaim = embed(RECLAIM, "the reclaim being done", line=True)
    rcu = embed(RCU_QUEUE, "RCU callbacks", line=True)
    waiter = embed(RWSEM_WAITER, "queue entry on an rw_semaphore", line=True)
    osq = embed(OSQ_NODE, "queue entry of the optimistic spin queue", line=True)
    uffd_wait = embed(UFFD_WAIT, "message of a fault that waits for its monitor", line=True)
    vmacache_seqnum = word("of the mm when the cache was filled", lock="owner", line=True)
    vmacache = word("recently used VMAs", lock="owner", count=VMACACHE_SIZE)
    anon_vma_list = word("cached free ANON_VMAs", lock="owner")
    anon_vma_count = word("their number", lock="owner")
    rss_file = word("change of rss_file not yet synced", lock="owner")
    rss_shmem = word("change of rss_shmem not yet synced", lock="owner")
    gup_nr = word("frames in `gup_pages` that are pinned", lock="owner", line=True)
    gup_pages = word("frames of the I/O that is going on", lock="owner", count=GUP_PAGES)
    node = word("its NUMA node")
    node_start = word("address of the PAGE of the node's first frame")
    node_end = word("address behind that of its last")
    stress = word("its STRESS_CPU, or 0")
    workload = word("parameters and state of the workload", lock="owner", line=True, count=32)
    event = word("event counts, see events.py", lock="owner", line=True, count=NR_EVENTS)
    tlb = word("(tag, pte) pairs", lock="owner", line=True, count=2 * TLB_ENTRIES)
    pad = word("keeps blocks apart for the adjacent-line prefetcher", line=True, count=8)


class HISTOGRAM(Struct, pad_to_line=True):
    """Latencies of one kind on one CPU, in cycles: log-linear buckets, merged by addition."""

    bucket = word("counts", lock="owner", count=HIST_BUCKETS)
    max = word("largest value [cycles]", lock="owner")


class SHADOW(Struct):
    """Whether an object of a slab or a frame is free, and who freed it, for the oracle `kasan`."""

    freed_by = word("address of the CPU block of who freed it last; 0: in use", lock="that of it")
    time = word("cycle count then", lock="as freed_by")
    site = word("last access of that CPU before: a site, plus 1", lock="as freed_by")
    nr_frees = word("how often it was freed", lock="as freed_by")


class STRESS(Struct, pad_to_line=True):
    """What oracles share: the first broken promise that one of them saw, parameters of delays."""

    violation = word("1 once one has been seen, by the CPU that writes the rest", lock="atomic")
    kind = word("Promise that is broken", lock="who has set violation")
    cpu = word("address of the CPU block of who saw it", lock="who has set violation")
    a = word("first detail: an address, mostly", lock="who has set violation")
    b = word("second detail", lock="who has set violation")
    time = word("cycle count when it was seen", lock="who has set violation")
    frozen = word("1: histories take no more entries, the record is complete", lock="atomic")
    delay_epoch = word("time for which a CPU delays at one site [cycles]; 0: no delays", line=True)
    delay_spin = word("longest delay in which a CPU spins [cycles]")
    delay_sleep = word("longest one in which it sleeps [ns]")
    nr_focus = word("sites in `focus`")
    focus = word("sites that are chosen half of the time", count=FOCUS_MAX)
    frame_shadow = word("address of the SHADOW of frame 0", line=True)
    mm_shadow = word("that of the first mm")
    anon_vma_shadow = word("that of the first ANON_VMA")
    avc_shadow = word("that of the first ANON_VMA_CHAIN")
    file_shadow = word("that of the first FILE")
    mapping_shadow = word("that of the first ADDRESS_SPACE")
    notifier_shadow = word("that of the first MMU_NOTIFIER")
    vma_shadow = word("that of the first VMA")
    uffd_shadow = word("that of the first USERFAULTFD_CTX")
    nr_sites = word("sites in `sites`", lock="atomic", line=True)
    sites = word("sites that some CPU has passed", lock="nr_sites", line=True, count=SITES_MAX)
    passed = word("by site: 1 if it is among them", lock="atomic", count=SITES_MAX)
    orders = word(
        "by class of a lock: a bit for each class taken while it was held",
        lock="atomic",
        line=True,
        count=LOCK_CLASSES,
    )


class STRESS_CPU(Struct, pad_to_line=True):
    """What oracles keep for each CPU."""

    stress = word("address of STRESS")
    nr_history = word("entries written to `history` so far", lock="owner")
    nr_delays = word("delays so far", lock="owner")
    random = word("state of the random generator of its delays", lock="owner")
    countdown = word("accesses until it looks at the time again", lock="owner")
    epoch_end = word("cycle count from which on another site is chosen", lock="owner")
    hot_site = word("site at which it delays, plus 1; 0: none", lock="owner")
    hot_left = word("delays left there", lock="owner")
    commit_denied = word(
        "1: the gate must not let the fault commit; 2: it is about to lock", lock="owner"
    )
    relaxes = word("rounds of waiting loops", lock="owner")
    copies = word("copies of VMAs made by speculative faults", lock="owner")
    torn = word("of them, torn ones", lock="owner")
    torn_vma = word("the VMA if the last copy was torn, else 0", lock="owner")
    hot_spin = word("longest of them [cycles]", lock="owner", line=True)
    site = word("its last access: a site, plus 1", lock="owner")
    exempt = word("Exempt: free objects that it may touch now", lock="owner")
    vma = word("VMA that its fault has locked, or 0", lock="owner")
    vma_generation = word("its generation then", lock="owner")
    timer = word("futex word of its sleeps: 0", lock="init")
    wait_class = word("LockClass of what it waits for, or 0", lock="owner")
    wait_on = word("the lock, or the CPU that has been sent an IPI", lock="owner")
    wait_number = word("of this wait; each has its own", lock="owner")
    nr_waits = word("waits so far", lock="owner")
    sleep_on = word("futex word on which it sleeps until it is woken, or 0", lock="owner")
    sleep_value = word("what the word was then", lock="owner")
    nr_held = word("locks in `held`", lock="owner", line=True)
    lost_held = word("locks that it holds besides, for want of room", lock="owner")
    held = word("(lock, its class, 1: for writing)", lock="owner", count=HELD_MAX * HELD_WORDS)
    history = word(
        "ring of (time, site, argument or result)",
        lock="owner",
        line=True,
        count=HISTORY_ENTRIES * HISTORY_WORDS,
    )


class VMA_STAMPS(Struct, pad_to_line=True):
    """The last states in which writers have left a VMA, as hashes (see oracles/torn_read.py)."""

    newest = word("states so far; the newest is at this index modulo NR_STAMPS", lock="mmap_lock")
    stamp = word("hashes", lock="mmap_lock", count=NR_STAMPS)


class SYSTEM(Struct, pad_to_line=True):
    """The segment's header and the emulated machine's global state."""

    magic = word("MAGIC", line=True)
    layout_hash = word("LAYOUT_HASH")
    base = word("address at which every process maps the segment")
    size = word("its size [bytes]")
    nr_cpus = word("CPU blocks")
    nr_mms = word("mm_structs in use from the beginning")
    nr_spare_mms = word("mm_structs that fork and exec may use besides")
    nr_frames = word("frames")
    nr_vmas = word("VMA slots")
    cpus = word("address of CPU 0")
    mms = word("address of mm 0")
    vmas = word("address of the VMA slab")
    anon_vmas = word("address of the ANON_VMA slab")
    nr_anon_vmas = word("its slots")
    avcs = word("address of the ANON_VMA_CHAIN slab")
    nr_avcs = word("its slots")
    files = word("address of the FILE slab")
    mappings = word("address of the ADDRESS_SPACE slab")
    nr_files = word("slots of either")
    notifiers = word("address of the MMU_NOTIFIER slab")
    nr_notifiers = word("its slots")
    nr_trace_words = word("words of the area `trace`")
    model = word("address of what a workload knows that memory must hold")
    nr_model_words = word("words of it")
    huge_pages = word("address of the first HUGE_PAGE")
    nr_huge = word("huge frames: the last of all frames")
    huge_vmemmap = word("address of the PAGE of the first frame of the first huge frame")
    vmemmap = word("address of the PAGE of frame 0")
    frames = word("address of frame 0")
    nr_swap = word("swap slots")
    nr_swap_clusters = word("clusters of them")
    swap_slots = word("address of the SWAP_SLOT of slot 0")
    swap_clusters = word("address of the first SWAP_CLUSTER")
    swap_area = word("address of the contents of slot 0")
    wmark_low = word("free frames in the pool below which kswapd is woken")
    wmark_high = word("free frames in the pool at which it rests")
    zero_pfn = word("address of the zero page")
    histograms = word("address of the first HISTOGRAM; two per CPU: faults, writer operations")
    scratch = word("address of scratch words for tests and probes")
    nr_scratch = word("their number")
    cycles_per_tick = word("cycles of the counter in a scheduler tick (4 ms: HZ=250)")
    stress_area = word("address of STRESS, if `stress` is 1")
    vma_stamps = word("address of the VMA_STAMPS of the first VMA slot, if `stress` is 1")

    stop = word("non-zero: workers leave their loops", lock="atomic", line=True)
    gate = word("futex word: 0 closed, 1 open", lock="atomic", line=True)
    ready = word("workers that wait at the gate", lock="atomic")

    zone_lock = word("spinlock over the global frame pool", lock="atomic", line=True)
    zone_chains = word("chains of PCP_BATCH frames", lock="zone_lock")
    zone_list = word("single free frames", lock="zone_lock")
    zone_free = word("free frames in the pool", lock="zone_lock")
    more_zones = word(
        "a line like this for each further node", lock="as above", line=True, count=ZONE_WORDS
    )

    kswapd_asleep = word("futex word: 1 while kswapd sleeps", lock="atomic", line=True)

    vma_lock = word("spinlock over free VMA slots", lock="atomic", line=True)
    vma_free = word("list of free VMA slots", lock="vma_lock")
    anon_vma_lock = word("spinlock over free ANON_VMA slots", lock="atomic", line=True)
    anon_vma_free = word("list of free slots", lock="anon_vma_lock")
    avc_lock = word("spinlock over free ANON_VMA_CHAIN slots", lock="atomic", line=True)
    avc_free = word("list of free slots, linked by same_vma", lock="avc_lock")
    files_lock = word("spinlock over free FILE and ADDRESS_SPACE slots", lock="atomic", line=True)
    file_free = word("list of free FILE slots", lock="files_lock")
    mapping_free = word("list of free ADDRESS_SPACE slots", lock="files_lock")
    mm_slots_lock = word("spinlock over free mms", lock="atomic", line=True)
    mm_free = word("list of free mms", lock="mm_slots_lock")
    huge_lock = word("spinlock over free huge frames", lock="atomic", line=True)
    huge_free = word("list of free huge frames", lock="huge_lock")
    khugepaged_mm = word("index of the mm at which khugepaged is", lock="owner", line=True)
    khugepaged_address = word("where it goes on there [bytes]", lock="owner")
    notifier_slab_lock = word("spinlock over free MMU_NOTIFIERs", lock="atomic", line=True)
    notifier_free = word("list of free slots", lock="notifier_slab_lock")
    mm_all_locks = embed(RWSEM, "mutex of who takes all rmap locks of an mm", line=True)

    rcu_gp = word("number of the running grace period", lock="atomic", line=True)
    drain_seq = word("drains begun: who sees a new one gives away its lists", lock="drain_lock")
    drain_lock = word("spinlock of who drains all CPUs", lock="atomic", line=True)
    rcu_orphan_lock = word("spinlock over `rcu_orphans`", lock="atomic")
    rcu_orphans = word("objects taken from RCU queues, for the drainer's", lock="rcu_orphan_lock")

    uffds = word("address of the USERFAULTFD_CTX slab", line=True)
    nr_uffds = word("its slots")
    nr_nodes = word("NUMA nodes")
    frames_per_node = word("frames of each but the last")
    numa_scan_period = word("time between two scans of an mm [cycles]")
    uffd_lock = word("spinlock over free contexts", lock="atomic")
    uffd_free = word("list of free contexts", lock="uffd_lock")
    stress = word("1: the segment has the area `stress_area`")


MAGIC = 0x5350464D4D534547  # "SPFMMSEG"


def layout_hash() -> int:
    """Hash of all declarations, 62 bits: a segment with another one is not attached."""
    text = repr([(s.__name__, s.SIZE, s.FIELDS) for s in Struct.ALL])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
