# SPDX-License-Identifier: MIT
"""Names of everything that a CPU counts, in the order in which it is stored.

The SPF names and their sites are those of the patch set (v2, include/linux/vm_event_item.h);
names marked *own* were added.  The ``SPF_ABORT_*`` always add up to ``SPF_ABORT``: the paths on
which the patch set aborts without a reason are not reachable here.  The VMA_LOCK names are those of
Linux 6.4.
"""

from __future__ import annotations

from enum import IntEnum


class Event(IntEnum):
    """Index into ``CPU.event``."""

    PGFAULT = 0  # every fault that was taken
    FAULT_READ = 1  # own: faults by reads
    FAULT_WRITE = 2  # own: faults by writes
    FAULT_CLASSIC = 3  # own: faults that took the mmap lock (fallbacks included)
    FAULT_SIGSEGV_MAPERR = 4  # own: unmapped address
    FAULT_SIGSEGV_ACCERR = 5  # own: access not allowed
    FAULT_OOM = 6  # own: no frame or table

    SPF_ATTEMPT = 8
    SPF_ABORT = 9
    SPF_ABORT_ODD = 10
    SPF_ABORT_UNMAPPED = 11
    SPF_ABORT_NO_SPECULATE = 12
    SPF_ABORT_VMA_COPY = 13
    SPF_ABORT_ACCESS_ERROR = 14
    SPF_ABORT_PUD = 15
    SPF_ABORT_PMD = 16
    SPF_ABORT_ANON_VMA = 17
    SPF_ABORT_PTE_MAP_LOCK_SEQ1 = 18
    SPF_ABORT_PTE_MAP_LOCK_PMD = 19
    SPF_ABORT_PTE_MAP_LOCK_PTL = 20
    SPF_ABORT_PTE_MAP_LOCK_SEQ2 = 21
    SPF_ABORT_SWAP = 7
    SPF_ABORT_USERFAULTFD = 26
    SPF_ATTEMPT_FILE = 22  # the RFC's
    SPF_ATTEMPT_ANON = 23
    SPF_ATTEMPT_PTE = 24
    SPF_ATTEMPT_WP = 25
    SPF_ATTEMPT_NUMA = 94
    SPF_ABORT_FAULT = 27  # the RFC's: a writer came before the file was asked

    ANON_ZERO_PAGE = 28  # own: zero page mapped by a read
    ANON_PAGE = 29  # own: fresh frame mapped
    ANON_LOST = 30  # own: another CPU filled the pte first
    WP_REUSE = 31  # own: private page made writable in place
    WP_COPY = 32  # own: page (or zero page) copied
    PTE_CHANGED = 33  # own: pte differed under the lock, nothing to do

    CALL_MMAP = 40
    CALL_MUNMAP = 41
    CALL_MPROTECT = 42
    CALL_MADVISE = 43
    CALL_BRK = 44
    CALL_FAILED = 45
    VMA_MERGE = 46
    VMA_SPLIT = 47
    PAGES_ZAPPED = 48
    TABLES_FREED = 49
    CALL_FORK = 50

    TLB_MISS = 52
    TLB_FLUSH = 53
    TLB_SHOOTDOWN_SENT = 54
    TLB_SHOOTDOWN_RECEIVED = 55

    RWSEM_READ_SLOW = 60
    RWSEM_READ_SLEEP = 61
    RWSEM_WRITE_SLOW = 62
    RWSEM_WRITE_SLEEP = 63
    RWSEM_OPTIMISTIC = 64
    RWSEM_HANDOFF = 65
    SPIN_CONTENDED = 66

    RCU_GP = 70
    RCU_CALLBACK = 71
    ZONE_REFILL = 72
    ZONE_DRAIN = 73

    VMA_LOCK_ATTEMPT = 80  # own: faults tried under a VMA's lock
    VMA_LOCK_SUCCESS = 81
    VMA_LOCK_ABORT = 82
    VMA_LOCK_RETRY = 83
    VMA_LOCK_MISS = 84
    VMA_LOCK_ABORT_UNMAPPED = 85  # own, as all reasons: the lookup found nothing
    VMA_LOCK_ABORT_NOT_ANON = 86  # not anonymous memory
    VMA_LOCK_ABORT_SEQ = 87  # a writer has it locked
    VMA_LOCK_ABORT_BUSY = 88  # a writer waits for its readers
    VMA_LOCK_ABORT_SEQ_RECHECK = 89  # a writer locked it after the first look
    VMA_LOCK_ABORT_MM = 90  # it belongs to another process by now
    VMA_LOCK_ABORT_RANGE = 91  # it does not cover the address
    VMA_LOCK_ABORT_ANON_VMA = 92  # no anon_vma yet
    VMA_LOCK_ABORT_USERFAULTFD = 199  # its faults may have to wait for a monitor
    VMA_LOCK_ACCESS_ERROR = 93  # own: access not allowed, left to the locked path
    SPF_ABORT_PAGE_CACHE = 96  # own: the cache has no page that can be used at once
    SPF_ABORT_PAGE_LOCK = 97  # own: somebody has the page locked

    SPF_ABORT_RECLAIM = 98  # own: no frame without reclaiming memory
    SPF_ABORT_MMU_NOTIFIER = 99  # own: a subscriber to the mm is being registered
    GUP_FAST = 215  # own, as all of these: frames taken without a lock
    GUP_SLOW = 216  # frames taken under the mmap lock
    GUP_PUT = 217  # frames given back
    GUP_RETREAT_PTE = 218  # the entry changed while its frame was taken
    GUP_RETREAT_FORK = 219  # a fork overlapped with pinning
    GUP_FAULT = 220  # faults for frames that were not there
    FORK_COPY_PINNED = 221  # pinned frames that a fork copied

    CALL_MREMAP = 140
    CALL_MLOCK = 142
    CALL_MINCORE = 143
    POPULATE_FAULT = 144  # own: pages touched by the kernel in advance
    FAULT_SIGBUS = 146  # own: nothing behind the mapping
    STACK_GROWN = 145  # own: faults below a stack that made it grow
    PAGES_MOVED = 141  # own: ptes that mremap moved

    PGSCAN = 170  # pages looked at for eviction
    PGSTEAL = 171  # frames freed by reclaim
    PGACTIVATE = 172  # pages spared because they were used
    PSWPIN = 173
    PSWPOUT = 174
    PGLAZYFREE = 176
    PGLAZYFREED = 177
    ALLOCSTALL = 178  # allocations that reclaimed
    PAGEOUTRUN = 179  # rounds of kswapd
    SWAP_CACHE_HIT = 180  # own: swapped pages found in memory
    SWAP_FULL = 181  # own: pages that found no slot
    SWAP_RA = 182  # pages read ahead

    THP_COLLAPSE_ALLOC = 200
    THP_COLLAPSE_ALLOC_FAILED = 201
    THP_SPLIT_PMD = 202
    THP_COLLAPSE = 203  # own: ranges whose ptes became one entry
    THP_COLLAPSE_FAILED = 204  # own: collapses that were given up
    KHUGEPAGED_SCAN = 205  # own: ranges looked at

    MMU_NOTIFIER_REGISTER = 210  # own: subscribers registered
    MMU_NOTIFIER_INVALIDATE = 211  # own: invalidations that a subscriber was told of
    MMU_NOTIFIER_FAULT = 212  # own: pages looked up for a subscriber
    MMU_NOTIFIER_RETRY = 213  # own: of them, given up for an invalidation
    NUMA_HINT_FAULTS = 185  # faults by which a scan learns who uses a page
    NUMA_HINT_FAULTS_LOCAL = 186  # of them, on pages of the own node
    NUMA_PTE_UPDATES = 187  # entries that scans have made fault
    NUMA_PAGE_MIGRATED = 188  # pages moved to who uses them
    NUMA_HIT = 189  # frames allocated on the own node
    NUMA_MISS = 190  # frames allocated on another
    NUMA_SCAN = 191  # own: scans
    UFFD_WAIT = 192  # own, as those below: faults that waited for their monitor
    UFFD_WAKE = 193  # faults woken by a monitor
    UFFD_COPY = 194  # pages filled with data
    UFFD_ZEROPAGE = 195  # pages filled with the zero page
    UFFD_WRITEPROTECT = 196  # pages write-protected
    UFFD_UNPROTECT = 197  # and released from it
    PGMAJFAULT = 150  # faults that had to read from a file or the swap area
    FILE_PAGE = 151  # own: page of a file mapped
    FILE_COW = 152  # own: private copy of a page made by the first write
    FILE_SHARED = 153  # own: page of a shared mapping mapped for writing
    FILE_MKWRITE = 154  # own: mapped page of a shared mapping made writable
    FILE_AROUND = 155  # own: pages mapped around the fault that were in the cache
    FILE_LOST = 156  # own: another CPU filled the pte first
    FILE_NOPAGE = 157  # own: the page went away meanwhile, the access is tried again
    PAGE_LOCK_RETRY = 158  # own: faults that let go of their lock to wait for a page's
    PAGES_ADDED = 159  # own: pages that entered a cache
    PAGES_TRUNCATED = 160  # own: pages that left one
    PAGES_WRITTEN = 161  # own: dirty pages written back
    CALL_MSYNC = 162
    CALL_FTRUNCATE = 163


ABORT_REASONS = tuple(e for e in Event if e.name.startswith("SPF_ABORT_"))
"""Their counts add up to ``Event.SPF_ABORT``."""
VMA_LOCK_ABORT_REASONS = tuple(e for e in Event if e.name.startswith("VMA_LOCK_ABORT_"))
"""Their counts add up to ``Event.VMA_LOCK_ABORT``."""
