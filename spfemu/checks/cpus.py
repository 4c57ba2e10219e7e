# SPDX-License-Identifier: MIT
"""CPUs at rest: nothing begun and not ended, queues in order, counters that add up."""

from __future__ import annotations

import numpy as np

from spfemu.checks.findings import ASTRAY, Words
from spfemu.checks.state import State
from spfemu.events import ABORT_REASONS, VMA_LOCK_ABORT_REASONS, Event
from spfemu.layout import GATHER, PAGE_SHIFT, RCU_QUEUE, WORD, Struct
from spfemu.mm.flags import PAGE_KIND_MASK, PMD_SHIFT, PTE_ADDR_MASK, PageKind, Pte
from spfemu.mm.irq import TLB_GENERATION, CpuState

AT_REST = {
    "irqs_disabled": "has interrupts off",
    "rcu_nesting": "is inside an RCU read-side section",
    "mmap_lock_held": "still holds the mmap lock",
    "percpu_read": "still holds an mmu_notifier_lock",
    "gup_nr": "still has frames pinned",
}
GATHER_EMPTY = (
    *("mm", "pages", "nr_pages", "tables", "nr_tables", "need_flush", "nr_shared"),
    "file_only",
)
FAULT_ENDS = (
    Event.ANON_ZERO_PAGE,
    Event.ANON_PAGE,
    Event.ANON_LOST,
    Event.WP_REUSE,
    Event.WP_COPY,
    Event.PTE_CHANGED,
    Event.FAULT_SIGSEGV_MAPERR,
    Event.FAULT_SIGSEGV_ACCERR,
    Event.FAULT_OOM,
    Event.FAULT_SIGBUS,
    Event.FILE_PAGE,
    Event.FILE_COW,
    Event.FILE_SHARED,
    Event.FILE_MKWRITE,
)
"""A fault ends in at most one of these."""
VMA_LOCK_ENDS = (
    Event.VMA_LOCK_SUCCESS,
    Event.VMA_LOCK_ABORT,
    Event.VMA_LOCK_RETRY,
    Event.VMA_LOCK_ACCESS_ERROR,
)
"""An attempt under a VMA's lock ends in one of these."""
CALLS = (
    Event.CALL_MMAP,
    Event.CALL_MUNMAP,
    Event.CALL_MPROTECT,
    Event.CALL_MADVISE,
    Event.CALL_BRK,
    Event.CALL_FORK,
    Event.CALL_MREMAP,
    Event.CALL_MLOCK,
    Event.CALL_MINCORE,
    Event.CALL_MSYNC,
    Event.CALL_FTRUNCATE,
)
Sums = tuple[tuple[tuple[Event, ...], tuple[Event, ...]], ...]
EQUAL_SUMS: Sums = (
    ((Event.PGFAULT,), (Event.FAULT_READ, Event.FAULT_WRITE)),
    ((Event.SPF_ABORT,), ABORT_REASONS),
    ((Event.VMA_LOCK_ATTEMPT,), VMA_LOCK_ENDS),
    ((Event.VMA_LOCK_ABORT,), VMA_LOCK_ABORT_REASONS),
    ((Event.GUP_FAST, Event.GUP_SLOW), (Event.GUP_PUT,)),
)
"""Pairs of counters with equal sums."""
BOUNDED_SUMS: Sums = (
    ((Event.SPF_ABORT,), (Event.SPF_ATTEMPT,)),
    (
        (Event.SPF_ATTEMPT_ANON, Event.SPF_ATTEMPT_FILE, Event.SPF_ATTEMPT_PTE),
        (Event.SPF_ATTEMPT,),
    ),
    ((Event.SPF_ATTEMPT_WP,), (Event.SPF_ATTEMPT_PTE,)),
    ((Event.SPF_ATTEMPT_NUMA,), (Event.SPF_ATTEMPT,)),
    ((Event.NUMA_HINT_FAULTS_LOCAL, Event.NUMA_PAGE_MIGRATED), (Event.NUMA_HINT_FAULTS,)),
    (FAULT_ENDS, (Event.PGFAULT, Event.POPULATE_FAULT, Event.GUP_FAULT)),
    ((Event.CALL_FAILED,), CALLS),
)
"""Pairs of counters of which the first is at most the second."""


def check_cpus(state: State) -> None:
    """Check that each CPU has left everything that it entered."""
    segment, add = state.segment, state.findings.add
    for index, cpu in enumerate(segment.cpus):
        name = f"CPU {index}"
        if int(cpu["state"]) == CpuState.RUNNING:
            add(f"{name} is still running")
        if int(cpu["state"]) == CpuState.FROZEN:
            add(f"{name} is frozen: a drainer never let go of it")
        for field, meaning in AT_REST.items():
            if cpu[field]:
                add(f"{name} {meaning} ({field} is {int(cpu[field])})")
        gather = _fields(cpu["gather"], GATHER)
        left = {f: gather[f] for f in GATHER_EMPTY if gather[f]}
        if left:
            add(f"{name} never finished an mmu_gather: {left}")
        if int(cpu["ipi_done"]) > int(cpu["ipi_request"]):
            add(f"{name} has served {cpu['ipi_done']} IPIs of {cpu['ipi_request']}")
        if int(cpu["rcu_qs"]) > int(segment.system["rcu_gp"]):
            add(
                f"{name} reported grace period {cpu['rcu_qs']}, but {segment.system['rcu_gp']} "
                "is the newest"
            )
        if state.mm_slots.index(int(cpu["mm"])) < 0:
            add(f"{name} runs what is no mm: {int(cpu['mm']):#x}")


def _fields(words: Words, struct: type[Struct]) -> dict[str, int]:
    """Values of an embedded struct by name."""
    return {f.name: int(words[f.offset // WORD]) for f in struct.FIELDS}


def check_counters(state: State) -> None:
    """Check that each CPU's events add up."""
    for index, counts in enumerate(state.segment.cpus["event"]):
        _check_events(state, f"CPU {index}", counts)


def _check_events(state: State, name: str, counts: Words) -> None:
    state.findings.each(
        [e for e in Event if counts[e] < 0],
        lambda e: f"{name}: {e.name} is negative ({counts[e]})",
    )
    for left, right in EQUAL_SUMS:
        if _sum(counts, left) != _sum(counts, right):
            state.findings.add(f"{name}: {_sums(counts, left, '!=', right)}")
    for left, right in BOUNDED_SUMS:
        if _sum(counts, left) > _sum(counts, right):
            state.findings.add(f"{name}: {_sums(counts, left, '>', right)}")


def _sum(counts: Words, events: tuple[Event, ...]) -> int:
    return int(counts[list(events)].sum())


def _sums(counts: Words, left: tuple[Event, ...], sign: str, right: tuple[Event, ...]) -> str:
    def side(events: tuple[Event, ...]) -> str:
        names = " + ".join(e.name for e in events if counts[e] or len(events) == 1)
        return f"{names or 'all reasons'} ({_sum(counts, events)})"

    return f"{side(left)} {sign} {side(right)}"


def check_rcu_queues(state: State) -> None:
    """Check the queues and claim what waits in them; note pages that have left a page cache."""
    segment = state.segment
    if int(segment.system["rcu_orphans"]) != 0:
        state.findings.add(
            f"objects from {int(segment.system['rcu_orphans']):#x} on wait for a grace period on "
            "no CPU's queue"
        )
    for index, cpu in enumerate(segment.cpus):
        queue = _fields(cpu["rcu"], RCU_QUEUE)
        name = f"the RCU queue of CPU {index}"
        queued = _walk_queue(state, f"{name} (new)", queue["head"])
        waiting = _walk_queue(state, f"{name} (waiting)", queue["wait_head"])
        if len(queued) + len(waiting) != queue["nr"]:
            state.findings.add(
                f"{name} holds {len(queued) + len(waiting)} objects, but counts {queue['nr']}"
            )
        last = queued[-1] if queued else 0
        if queue["tail"] != last:
            state.findings.add(f"{name} ends at {last:#x}, but its tail is {queue['tail']:#x}")
        objects = queued + waiting
        vmas = [i for i in map(state.vma_slots.index, objects) if i >= 0]
        state.vma_owners.claim(vmas, name)
        pages = [i for i in map(state.page_slots.index, objects) if i >= 0]
        state.frame_owners.claim(pages, name)
        kinds = segment.pages["flags"][pages] & PAGE_KIND_MASK
        state.leaving += [i for i, kind in zip(pages, kinds, strict=True) if kind == PageKind.FILE]


def _walk_queue(state: State, name: str, head: int) -> list[int]:
    """Addresses of the VMAs and struct pages on a queue, up to where it is broken."""
    segment = state.segment
    found: list[int] = []
    seen: set[int] = set()
    address = head
    while address != 0:
        if address in seen:
            state.findings.add(f"{name} runs in a circle through {address:#x}")
            break
        vma, page = state.vma_slots.index(address), state.page_slots.index(address)
        if vma == ASTRAY and page == ASTRAY:
            state.findings.add(f"{name} leads to {address:#x}, no VMA slot and no struct page")
            break
        seen.add(address)
        found.append(address)
        link = segment.vmas["vm_start"][vma] if vma >= 0 else segment.pages["lru"][page]
        address = int(link)
    return found


def check_tlbs(state: State) -> None:
    """Check that no CPU would use a translation that the page table no longer has.

    A CPU that has missed a flush makes up for it before it runs again (cpu_idle_exit), so it may
    have anything in its TLB.
    """
    for index, cpu in enumerate(state.segment.cpus):
        mm = state.mm_slots.index(int(cpu["mm"]))
        if mm not in state.mappings:
            continue
        if int(cpu["tlb_gen"]) == int(state.segment.mms["tlb_gen"][mm]):
            _check_tlb(state, f"CPU {index}", cpu["tlb"], int(cpu["tlb_tag"]), mm)
            _check_paging_structure_cache(state, index, mm)


def _check_tlb(state: State, name: str, tlb: Words, tag: int, mm: int) -> None:
    tags, cached = tlb[0::2], tlb[1::2]
    valid = (tags & -TLB_GENERATION) == tag
    addresses, cached = (tags[valid] & (TLB_GENERATION - 1)) << PAGE_SHIFT, cached[valid]
    entries = state.mappings[mm].lookup(addresses)
    identity = PTE_ADDR_MASK | int(Pte.PRESENT)
    stale = ((cached ^ entries) & identity != 0) | (cached & ~entries & Pte.RW != 0)
    state.findings.each(
        np.flatnonzero(stale),
        lambda i: (
            f"{name} has a stale TLB entry: {addresses[i]:#x} is {cached[i]:#x} there and "
            f"{entries[i]:#x} in the page table"
        ),
    )


def _check_paging_structure_cache(state: State, index: int, mm: int) -> None:
    cpu = state.segment.cpus[index]
    tag, cached = int(cpu["pde_tag"]), int(cpu["pde"])
    if tag & -TLB_GENERATION != int(cpu["tlb_tag"]):
        return
    address = (tag & (TLB_GENERATION - 1)) << PMD_SHIFT
    (entry,) = state.pmds[mm].lookup(np.asarray([address]))
    if entry != cached:
        state.findings.add(
            f"CPU {index} has a stale paging-structure cache: the pmd entry of {address:#x} is "
            f"{cached:#x} there and {entry:#x} in the page table"
        )
