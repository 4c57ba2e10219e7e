# SPDX-License-Identifier: MIT
"""Build options of the emulated kernel.

An engine compiles them in: a branch on one of them costs nothing in the code that runs.
"""

CONFIG_MMU_GATHER_RCU_TABLE_FREE = 1
"""1: page tables are freed through RCU and walkers hold rcu_read_lock; 0: walkers turn interrupts
off, which holds off the TLB-shootdown IPI that unmappers wait for."""

CONFIG_MMAP_SEQ_OWN_LINE = 0
"""1: mmap_seq has a cache line of its own instead of sharing that of mmap_lock."""

CONFIG_NUMA = 0
"""1: frames and CPUs belong to nodes, and NUMA hinting moves pages between them."""

CONFIG_VMA_LATCH = 0
"""1: VMAs are in two copies of a latched tree, of which lookups walk the one at rest."""

CONFIG_LATENCY = 0
"""1: every fault and every writer's call is timed into histograms."""

CONFIG_FAULT_OVERHEAD = 0
"""1: every fault spins for the number of cycles in CPU.fault_overhead."""

CONFIG_LINUX_VERSION = 0x612
"""(major << 8) + minor of the kernel whose mappings programs see where versions differ: what is
merged and split, where mappings go, what mprotect saves faults.  The values that matter are named
in mm/versions.py."""

CONFIG_KTHREADS = 1
"""1: CPUs may run the kernel's own threads; 0: their code is left out of a measured program."""

CONFIG_TRANSPARENT_HUGEPAGE_ALWAYS = 1
"""1: khugepaged collapses anonymous memory unless it is advised not to (MADV_NOHUGEPAGE); 0: only
where it is advised to (MADV_HUGEPAGE).  /sys/kernel/mm/transparent_hugepage/enabled."""

CONFIG_KHUGEPAGED_MAX_PTES_NONE = 511
"""Empty ptes, and such of the zero page, that khugepaged fills up in a collapse."""

CONFIG_KHUGEPAGED_MAX_PTES_SHARED = 256
"""Pages mapped more than once that khugepaged copies in a collapse."""

CONFIG_DEBUG_VM = 1
"""1: vm_bug_on stops a CPU whose kernel assertion fails; measured runs are built without, as
production kernels are."""
