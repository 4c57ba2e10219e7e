# SPDX-License-Identifier: MIT
"""A CPU block: all that one worker owns."""

from spfemu.layout.locks import OSQ_NODE, RWSEM_WAITER
from spfemu.layout.struct import Struct, embed, word
from spfemu.layout.userfaultfd import UFFD_WAIT
from spfemu.layout.vma import VMA

TLB_ENTRIES = 64
"""Entries of the direct-mapped software TLB (the L1 data TLB of current x86 cores has 64-96)."""
VMACACHE_SIZE = 4
"""Entries of the per-thread VMA cache (Linux 5.12, include/linux/mm_types_task.h)."""
GATHER_SHARED = 56
"""Frames that others map too which a gather holds before it has to flush."""
GUP_PAGES = 15
"""Most frames that a CPU's thread has pinned at once."""
SWAP_CLUSTER_MAX = 32
"""Pages that a reclaimer collects before it evicts them (include/linux/swap.h)."""
NR_EVENTS = 256
"""Counters that each CPU has room for."""
HIST_SUB_BITS = 5
HIST_BUCKETS = (64 - HIST_SUB_BITS) << HIST_SUB_BITS
"""Buckets of a log-linear histogram with 32 steps per power of two (at most 3.2 % wide)."""


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


class RCU_QUEUE(Struct):
    """Callbacks of one CPU, oldest first (see mm/rcu.py)."""

    head = word("oldest queued object or 0", lock="owner")
    tail = word("newest queued object or 0", lock="owner")
    gp = word("grace period after whose end the wait list may be run", lock="owner")
    wait_head = word("objects waiting for grace period `gp`", lock="owner")
    nr = word("objects queued and waiting", lock="owner")
    scan_gp = word("grace period that `scan_cpu` is about", lock="owner")
    scan_cpu = word("first CPU not yet found quiescent in it", lock="owner")


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
