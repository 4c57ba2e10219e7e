# SPDX-License-Identifier: MIT
"""An address space, and who subscribes to its changes."""

from spfemu.layout.locks import PERCPU_RWSEM, RWSEM
from spfemu.layout.struct import Struct, embed, word

CPUMASK_SHIFT = 5
"""An mm's cpumask has 32 CPUs in a word: the sign bit stays out of the way of shifts."""
NR_CPUS_MAX = 512
"""Most CPUs in one segment (the width of an mm's cpumask)."""
NOTIFIER_SHADOW = 16
"""Entries of the direct-mapped translation table of an MMU notifier's subscriber."""


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
