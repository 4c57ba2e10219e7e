# SPDX-License-Identifier: MIT
"""Resident set: how many pages of which kind an mm maps (Linux 5.12, SPLIT_RSS_COUNTING).

Changes by the CPU that runs the mm are kept in the CPU and synced from time to time.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE
from spfemu.mm.flags import Pg
from spfemu.primitives import atomic_fetch_add_relaxed, load, store

RSS_SYNC = 64
"""Changes of a CPU's rss between syncs (Linux 5.12: TASK_RSS_EVENTS_THRESH)."""


@kernel
def inc_mm_counter_fast(cpu: int) -> None:
    """Count one more anonymous page, in the CPU first."""
    store(cpu + CPU.rss_anon, load(cpu + CPU.rss_anon) + 1)
    check_sync_rss_stat(cpu)


@kernel
def inc_mm_file_counter(cpu: int, page: int) -> None:
    """Count one more page of a file or of shared memory, in the CPU first (mm_counter_file)."""
    counter = cpu + (CPU.rss_shmem if load(page + PAGE.flags) & Pg.SWAPBACKED else CPU.rss_file)
    store(counter, load(counter) + 1)
    check_sync_rss_stat(cpu)


@kernel
def check_sync_rss_stat(cpu: int) -> None:
    """Sync after a number of changes."""
    events = load(cpu + CPU.rss_events) + 1
    if events >= RSS_SYNC:
        sync_mm_rss(cpu)
        events = 0
    store(cpu + CPU.rss_events, events)


@kernel
def add_mm_counter(cpu: int, mm: int, synced: int, kept: int, change: int) -> None:
    """Count pages of `mm`, in the CPU first if it runs the mm: in fields of MM and of CPU."""
    if load(cpu + CPU.mm) == mm:
        store(cpu + kept, load(cpu + kept) + change)
    elif change != 0:
        atomic_fetch_add_relaxed(mm + synced, change)


@kernel
def add_mm_rss(cpu: int, mm: int, change: int) -> None:
    """Count anonymous pages of `mm` (add_mm_rss_vec)."""
    add_mm_counter(cpu, mm, MM.rss_anon, CPU.rss_anon, change)


@kernel
def add_mm_file_rss(cpu: int, mm: int, page: int, change: int) -> None:
    """Count `change` mappings of `page`, which is one of a file or of shared memory."""
    if load(page + PAGE.flags) & Pg.SWAPBACKED:
        add_mm_counter(cpu, mm, MM.rss_shmem, CPU.rss_shmem, change)
    else:
        add_mm_counter(cpu, mm, MM.rss_file, CPU.rss_file, change)


@kernel
def sync_mm_rss(cpu: int) -> None:
    """Add the CPU's changes to the counts of its mm."""
    sync_mm_counter(cpu, MM.rss_anon, CPU.rss_anon)
    sync_mm_counter(cpu, MM.rss_file, CPU.rss_file)
    sync_mm_counter(cpu, MM.rss_shmem, CPU.rss_shmem)


@kernel
def sync_mm_counter(cpu: int, synced: int, kept: int) -> None:
    """Do so for one kind of pages."""
    delta = load(cpu + kept)
    if delta != 0:
        atomic_fetch_add_relaxed(load(cpu + CPU.mm) + synced, delta)
        store(cpu + kept, 0)
