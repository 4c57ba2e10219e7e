# SPDX-License-Identifier: MIT
"""Every struct of the shared segment, declared once.

The modules declare them by what they belong to; struct.py says how.  Everyone else, overrides
included, imports from here: only the whole is a layout, and has the hash of one.
"""

from __future__ import annotations

import hashlib

from spfemu.layout.cpu import (
    CPU,
    GATHER,
    GATHER_SHARED,
    GUP_PAGES,
    HIST_BUCKETS,
    HIST_SUB_BITS,
    HISTOGRAM,
    NR_EVENTS,
    RCU_QUEUE,
    RECLAIM,
    SWAP_CLUSTER_MAX,
    TLB_ENTRIES,
    VMACACHE_SIZE,
    VMF,
)
from spfemu.layout.file import ADDRESS_SPACE, FILE
from spfemu.layout.locks import OSQ_NODE, PERCPU_RWSEM, RWSEM, RWSEM_WAITER
from spfemu.layout.mm import CPUMASK_SHIFT, MM, MMU_NOTIFIER, NOTIFIER_SHADOW, NR_CPUS_MAX
from spfemu.layout.page import (
    HUGE_PAGE,
    PAGE,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    SWAP_CLUSTER,
    SWAP_SLOT,
)
from spfemu.layout.stress import (
    FOCUS_MAX,
    HELD_MAX,
    HELD_WORDS,
    HISTORY_ENTRIES,
    HISTORY_WORDS,
    LOCK_CLASSES,
    NR_STAMPS,
    QUARANTINE,
    QUARANTINE_ENTRIES,
    QUARANTINE_WORDS,
    SHADOW,
    SITES_MAX,
    STRESS,
    STRESS_CPU,
    VMA_STAMPS,
)
from spfemu.layout.struct import CACHE_LINE, WORD, Struct
from spfemu.layout.system import NR_NODES_MAX, SYSTEM, ZONE_WORDS
from spfemu.layout.userfaultfd import UFFD_WAIT, USERFAULTFD_CTX
from spfemu.layout.vma import ANON_VMA, ANON_VMA_CHAIN, VMA

__all__ = [
    "ADDRESS_SPACE",
    "ANON_VMA",
    "ANON_VMA_CHAIN",
    "CACHE_LINE",
    "CPU",
    "CPUMASK_SHIFT",
    "FILE",
    "FOCUS_MAX",
    "GATHER",
    "GATHER_SHARED",
    "GUP_PAGES",
    "HELD_MAX",
    "HELD_WORDS",
    "HISTOGRAM",
    "HISTORY_ENTRIES",
    "HISTORY_WORDS",
    "HIST_BUCKETS",
    "HIST_SUB_BITS",
    "HUGE_PAGE",
    "LOCK_CLASSES",
    "MAGIC",
    "MM",
    "MMU_NOTIFIER",
    "NOTIFIER_SHADOW",
    "NR_CPUS_MAX",
    "NR_EVENTS",
    "NR_NODES_MAX",
    "NR_STAMPS",
    "OSQ_NODE",
    "PAGE",
    "PAGE_MASK",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "PERCPU_RWSEM",
    "QUARANTINE",
    "QUARANTINE_ENTRIES",
    "QUARANTINE_WORDS",
    "RCU_QUEUE",
    "RECLAIM",
    "RWSEM",
    "RWSEM_WAITER",
    "SHADOW",
    "SITES_MAX",
    "STRESS",
    "STRESS_CPU",
    "SWAP_CLUSTER",
    "SWAP_CLUSTER_MAX",
    "SWAP_SLOT",
    "SYSTEM",
    "TLB_ENTRIES",
    "UFFD_WAIT",
    "USERFAULTFD_CTX",
    "VMA",
    "VMACACHE_SIZE",
    "VMA_STAMPS",
    "VMF",
    "WORD",
    "ZONE_WORDS",
    "Struct",
    "layout_hash",
]

MAGIC = 0x5350464D4D534547  # "SPFMMSEG"


def layout_hash() -> int:
    """Hash of all declarations, 62 bits: a segment with another one is not attached."""
    text = repr([(s.__name__, s.SIZE, s.FIELDS) for s in Struct.ALL])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
