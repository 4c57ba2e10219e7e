# SPDX-License-Identifier: MIT
"""NUMA hinting: entries made inaccessible now and then, to learn who uses the page.

Answers to kernel/sched/fair.c (task_tick_numa, task_numa_work), mm/mempolicy.c (change_prot_numa)
and mm/memory.c (do_numa_page) of Linux 5.12.  A thread that is due walks on through the mm between
two of its operations, under the mmap lock for reading, and takes PRESENT from entries of anonymous
pages.  The next access faults, gives it back, and moves the page to the node of who came if it is
elsewhere (migrate.py).

Differs in that the period is fixed, that the first such fault moves the page (the kernel waits for
a second one from the same node), and that there are no policies: a page belongs where it is used.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE_SHIFT, SYSTEM, VMA
from spfemu.mm.mmap_lock import mmap_read_trylock, mmap_read_unlock
from spfemu.mm.vma import VM_ACCESS_FLAGS, find_vma
from spfemu.mm.vmstat import count_vm_event, count_vm_events
from spfemu.mm.zap import MmCp, change_protection
from spfemu.primitives import cmpxchg, load, read_cycles, read_once, store

NUMA_SCAN_PAGES = 4096
"""Pages of address space that one scan covers: 16 MiB (Linux: 256 MiB in a second or more)."""


@kernel
def task_tick_numa(cpu: int) -> None:
    """Scan if it is time and nobody else of the mm does it; between operations."""
    mm = load(cpu + CPU.mm)
    due = read_once(mm + MM.numa_next_scan)
    now = read_cycles()
    if now < due:
        return
    period = load(load(cpu + CPU.system) + SYSTEM.numa_scan_period)
    if cmpxchg(mm + MM.numa_next_scan, due, now + period) == due:
        task_numa_work(cpu, mm)


@slowpath
def task_numa_work(cpu: int, mm: int) -> None:
    """Make the pages of the next part of the address space fault once more.

    Who does not get the mmap lock at once leaves it for the next time.  Only one thread of an mm is
    here: it has moved numa_next_scan, and a scan takes less than a period, or meets its like in the
    page tables only.
    """
    if mmap_read_trylock(cpu, mm) == 0:
        return
    count_vm_event(cpu, Event.NUMA_SCAN)
    left = NUMA_SCAN_PAGES << PAGE_SHIFT
    start = read_once(mm + MM.numa_scan_offset)
    vma = find_vma(cpu, mm, start)
    if vma == 0:
        start = 0
        vma = load(mm + MM.mmap)
    while vma != 0 and left > 0:
        first = load(vma + VMA.vm_start)
        start = start if start > first else first
        end = load(vma + VMA.vm_end)
        end = end if end - start < left else start + left
        if vma_is_migratable(vma):
            count_vm_events(cpu, Event.NUMA_PTE_UPDATES, change_prot_numa(cpu, vma, start, end))
        left -= end - start
        start = end
        if start == load(vma + VMA.vm_end):
            vma = load(vma + VMA.vm_next)
    store(mm + MM.numa_scan_offset, start if vma != 0 else 0)
    mmap_read_unlock(cpu, mm)


@kernel
def vma_is_migratable(vma: int) -> int:
    """Tell whether pages of the VMA may be moved: anonymous memory that can be accessed."""
    return load(vma + VMA.vm_ops) == 0 and (load(vma + VMA.vm_flags) & VM_ACCESS_FLAGS) != 0


@kernel
def change_prot_numa(cpu: int, vma: int, start: int, end: int) -> int:
    """Make the pages of a range fault at the next access; returns how many."""
    return change_protection(cpu, vma, start, end, MmCp.PROT_NUMA)
