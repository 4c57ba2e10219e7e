# SPDX-License-Identifier: MIT
"""Locks, CPUs, counters and RCU queues that are not as they must be are reported."""

from corruption import Corrupt, Corruptions, check_reported
from good_segment import GoodSegment, area

from spfemu.events import Event
from spfemu.layout import CPU, GATHER, MM, PAGE, PAGE_SIZE, RCU_QUEUE, RWSEM, WORD
from spfemu.mm.flags import Pte
from spfemu.mm.irq import CpuState
from spfemu.mm.vma import SlabState

corruptions = Corruptions()


# Locks and sequence counts


@corruptions.reports("^zone_lock is held by CPU 1$")
def zone_lock_held(good: GoodSegment) -> None:
    good.segment.system["zone_lock"] = 2


@corruptions.reports("^vma_lock is held by CPU 0$")
def vma_lock_held(good: GoodSegment) -> None:
    good.segment.system["vma_lock"] = 1


@corruptions.reports("^anon_vma_lock is held by CPU 2$")
def anon_vma_lock_held(good: GoodSegment) -> None:
    good.segment.system["anon_vma_lock"] = 3


@corruptions.reports("^page_table_lock of mm 1 is held by CPU 0$")
def page_table_lock_held(good: GoodSegment) -> None:
    good.segment.mms["page_table_lock"][1] = 1


@corruptions.reports("^the page-table lock of frame .* is held by CPU 1$")
def split_lock_held(good: GoodSegment) -> None:
    good.page(area(0), level=1)["ptl"] = 2


def _rwsem_word(good: GoodSegment, field: int) -> int:
    return (good.segment.mm(0) + MM.mmap_lock + field - good.segment.base) // WORD


@corruptions.reports("^mmap_lock of mm 0 is not free: its count is 0x100$")
def mmap_lock_read_held(good: GoodSegment) -> None:
    good.segment.words[_rwsem_word(good, RWSEM.count)] = 0x100


@corruptions.reports("^mmap_lock of mm 0 still has a writing owner, CPU 1$")
def mmap_lock_owned(good: GoodSegment) -> None:
    good.segment.words[_rwsem_word(good, RWSEM.owner)] = 2


@corruptions.reports("^mmap_lock of mm 0 still has CPU 1 in its spin queue$")
def mmap_lock_spun_for(good: GoodSegment) -> None:
    good.segment.words[_rwsem_word(good, RWSEM.osq)] = 2


@corruptions.reports("^mmap_lock of mm 0 still has a waiter, 0x[1-9a-f]")
def mmap_lock_awaited(good: GoodSegment) -> None:
    good.segment.words[_rwsem_word(good, RWSEM.wait_head)] = good.segment.cpu(1) + CPU.waiter


@corruptions.reports("^wait_lock of mmap_lock of mm 0 is held by CPU 0$")
def wait_lock_held(good: GoodSegment) -> None:
    good.segment.words[_rwsem_word(good, RWSEM.wait_lock)] = 1


@corruptions.reports(r"^mmap_seq of mm 0 is odd \(\d+\)")
def mmap_seq_odd(good: GoodSegment) -> None:
    good.segment.mms["mmap_seq"][0] += 1


@corruptions.reports("^mm 0 counts in both mmap_seq and mmap_seq_own")
def both_sequence_counts(good: GoodSegment) -> None:
    good.segment.mms["mmap_seq_own"][0] = 2


def _first_vma(good: GoodSegment) -> int:
    """Index of the VMA of the first area of mm 0."""
    return good.vma_index(area(0))


# Locks and counts of single VMAs


@corruptions.reports("^vm_lock of VMA slot .* is not free: its count is 0x100$")
def vma_lock_read_held(good: GoodSegment) -> None:
    good.segment.vmas["vm_lock"][5, RWSEM.count // WORD] = 0x100


@corruptions.reports("^vm_lock of VMA slot .* still has a waiter, 0x")
def vma_lock_awaited(good: GoodSegment) -> None:
    good.segment.vmas["vm_lock"][5, RWSEM.wait_head // WORD] = good.segment.cpu(1) + CPU.waiter


@corruptions.reports(r"^vm_sequence of VMA slot 5 .* is odd \(3\)$")
def vma_sequence_odd(good: GoodSegment) -> None:
    good.segment.vmas["vm_sequence"][5] = 3


@corruptions.reports("^mm_seq of mm 1 is odd: a change of the tree never ended$")
def tree_sequence_odd(good: GoodSegment) -> None:
    good.segment.mms["mm_seq"][1] = 1


@corruptions.reports("^mm_rb_lock of mm 1 is not free .0x2.$")
def tree_lock_held(good: GoodSegment) -> None:
    good.segment.mms["mm_rb_lock"][1] = 2


@corruptions.reports(r"^fault_count of VMA slot 5 .* is -1 instead of 0$")
def fault_not_counted_down(good: GoodSegment) -> None:
    good.segment.vmas["fault_count"][5] = -1


def _attach(good: GoodSegment, name: str) -> None:
    """Count references as a kernel does that has them."""
    vmas = good.segment.vmas
    vmas[name] = vmas["slab_state"] == SlabState.IN_USE


@corruptions.reports("^vm_refcnt of VMA slot .* is 2 instead of 1$")
def reader_never_left(good: GoodSegment) -> None:
    _attach(good, "vm_refcnt")
    good.segment.vmas["vm_refcnt"][_first_vma(good)] = 2


@corruptions.reports("^vm_ref_count of VMA slot .* is 0 instead of 1$")
def reference_put_twice(good: GoodSegment) -> None:
    _attach(good, "vm_ref_count")
    good.segment.vmas["vm_ref_count"][_first_vma(good)] = 0


@corruptions.reports("^vm_refcnt of VMA slot .* is 1 instead of 0$")
def free_vma_attached(good: GoodSegment) -> None:
    _attach(good, "vm_refcnt")
    good.segment.vmas["vm_refcnt"][-1] = 1


@corruptions.reports(r"^mm 0: VMA \[.* is still marked as detached$")
def linked_vma_detached(good: GoodSegment) -> None:
    good.segment.vmas["detached"][_first_vma(good)] = 1


@corruptions.reports(r"^mm 0: VMA \[.* is still locked for writing$")
def vma_never_unlocked(good: GoodSegment) -> None:
    good.segment.mms["mm_lock_seq"][0] = 7
    good.segment.vmas["vm_lock_seq"][_first_vma(good)] = 7


# CPUs


@corruptions.reports("^CPU 1 is still running$")
def cpu_running(good: GoodSegment) -> None:
    good.segment.cpus["state"][1] = CpuState.RUNNING


@corruptions.reports("^CPU 1 is frozen: a drainer never let go of it$")
def cpu_frozen(good: GoodSegment) -> None:
    good.segment.cpus["state"][1] = CpuState.FROZEN


@corruptions.reports("^objects from 0x[0-9a-f]+ on wait for a grace period on no CPU's queue$")
def orphans(good: GoodSegment) -> None:
    good.segment.system["rcu_orphans"] = good.segment.address["vmemmap"]


@corruptions.reports("^drain_lock is held by CPU 1$")
def drain_lock_held(good: GoodSegment) -> None:
    good.segment.system["drain_lock"] = 2


@corruptions.reports("^CPU 0 has interrupts off")
def interrupts_off(good: GoodSegment) -> None:
    good.segment.cpus["irqs_disabled"][0] = 1


@corruptions.reports("^CPU 2 is inside an RCU read-side section")
def inside_rcu_section(good: GoodSegment) -> None:
    good.segment.cpus["rcu_nesting"][2] = 1


@corruptions.reports("^CPU 0 still holds the mmap lock")
def mmap_lock_not_left(good: GoodSegment) -> None:
    good.segment.cpus["mmap_lock_held"][0] = 2


@corruptions.reports("^CPU 1 still has frames pinned")
def frames_pinned(good: GoodSegment) -> None:
    good.segment.cpus["gup_nr"][1] = 3


@corruptions.reports(r"^CPU 0 never finished an mmu_gather: \{'need_flush': 1\}$")
def gather_not_finished(good: GoodSegment) -> None:
    good.segment.words[good.cpu_word(0, CPU.gather + GATHER.need_flush)] = 1


@corruptions.reports(r"^CPU 0 has served \d+ IPIs of 0$")
def ipi_never_sent(good: GoodSegment) -> None:
    good.segment.cpus["ipi_done"][0] = 1


@corruptions.reports("^CPU 0 reported grace period 1000, but")
def grace_period_of_the_future(good: GoodSegment) -> None:
    good.segment.cpus["rcu_qs"][0] = 1000


@corruptions.reports(
    "^CPU 2 runs what is no mm: 0x7$",
    "^CPU 2 is in the cpumask of mm 1, but does not run it$",
    "^mm 1 counts 0 anonymous pages .* but 3 are mapped",
)
def no_mm(good: GoodSegment) -> None:
    good.segment.cpus["mm"][2] = 7


@corruptions.reports(
    "^CPU 0 has a stale TLB entry: 0x10000000 is 0x.* there and 0x.* in the page table$"
)
def stale_tlb_entry(good: GoodSegment) -> None:
    slot = CPU.tlb + ((area(0) >> 12) & 63) * 2 * WORD
    good.segment.words[good.cpu_word(0, slot + WORD)] += PAGE_SIZE


@corruptions.reports(
    "^CPU 0 has a stale TLB entry: 0x10a03000 is", "^CPU 1 has a stale TLB entry: 0x10a03000 is"
)
def tlb_entry_too_writable(good: GoodSegment) -> None:
    good.segment.words[good.entry(area(10, 3))] &= ~int(Pte.RW)


@corruptions.reports(
    "^CPU 0 has a stale paging-structure cache: the pmd entry of 0x10a00000 is 0x0 there and 0x"
)
def stale_paging_structure_cache(good: GoodSegment) -> None:
    good.segment.cpus["pde"][0] = 0


# Counters


@corruptions.reports(r"^CPU 0: SPF_ABORT \(\d+\) != .*\(\d+\)$")
def abort_without_reason(good: GoodSegment) -> None:
    good.segment.cpus["event"][0][Event.SPF_ABORT] += 1


@corruptions.reports(r"^CPU 0: GUP_SLOW \(1\) != GUP_PUT \(0\)$")
def frame_not_given_back(good: GoodSegment) -> None:
    good.segment.cpus["event"][0][Event.GUP_SLOW] += 1


@corruptions.reports(r"^CPU 1: PGFAULT \(\d+\) != FAULT_READ \+ FAULT_WRITE \(\d+\)$")
def fault_without_kind(good: GoodSegment) -> None:
    good.segment.cpus["event"][1][Event.PGFAULT] += 1


@corruptions.reports("^CPU 2: TLB_MISS is negative")
def negative_count(good: GoodSegment) -> None:
    good.segment.cpus["event"][2][Event.TLB_MISS] = -1


@corruptions.reports(r"^CPU 0: VMA_LOCK_ATTEMPT \(1\) != all reasons \(0\)$")
def attempt_under_a_vma_lock_without_end(good: GoodSegment) -> None:
    good.segment.cpus["event"][0][Event.VMA_LOCK_ATTEMPT] += 1


@corruptions.reports(r"^CPU 0: VMA_LOCK_ABORT \(1\) != all reasons \(0\)$")
def vma_lock_abort_without_reason(good: GoodSegment) -> None:
    good.segment.cpus["event"][0][[Event.VMA_LOCK_ATTEMPT, Event.VMA_LOCK_ABORT]] += 1


@corruptions.reports(r"^CPU 0: SPF_ABORT \(\d+\) > SPF_ATTEMPT \(\d+\)$")
def abort_without_attempt(good: GoodSegment) -> None:
    events = good.segment.cpus["event"][0]
    more = int(events[Event.SPF_ATTEMPT])
    events[Event.SPF_ABORT] += more
    events[Event.SPF_ABORT_ODD] += more


@corruptions.reports(r"^CPU 0: .* > PGFAULT \(\d+\)$")
def fault_with_two_ends(good: GoodSegment) -> None:
    events = good.segment.cpus["event"][0]
    events[Event.ANON_PAGE] += int(events[Event.PGFAULT])


@corruptions.reports(r"^CPU 0: SPF_ATTEMPT_ANON \+ SPF_ATTEMPT_PTE \(\d+\) > SPF_ATTEMPT \(\d+\)$")
def too_many_kinds_of_attempt(good: GoodSegment) -> None:
    good.segment.cpus["event"][0][Event.SPF_ATTEMPT_PTE] += 10_000


@corruptions.reports(r"^CPU 0: SPF_ATTEMPT_WP \(10000\) > SPF_ATTEMPT_PTE \(\d+\)$")
def write_protection_without_pte(good: GoodSegment) -> None:
    good.segment.cpus["event"][0][Event.SPF_ATTEMPT_WP] = 10_000


@corruptions.reports(r"^CPU 0: CALL_FAILED \(10000\) > .*CALL_MMAP.* \(\d+\)$")
def failure_without_call(good: GoodSegment) -> None:
    good.segment.cpus["event"][0][Event.CALL_FAILED] = 10_000


# RCU queues


def _queue_word(good: GoodSegment, field: int) -> int:
    return good.cpu_word(1, CPU.rcu + field)


@corruptions.reports("^the RCU queue of CPU 1 holds 5 objects, but counts 6$")
def queue_count_wrong(good: GoodSegment) -> None:
    good.segment.words[_queue_word(good, RCU_QUEUE.nr)] += 1


@corruptions.reports("^the RCU queue of CPU 1 ends at 0x.*, but its tail is 0x1000$")
def queue_tail_wrong(good: GoodSegment) -> None:
    good.segment.words[_queue_word(good, RCU_QUEUE.tail)] = 0x1000


@corruptions.reports(
    r"^the RCU queue of CPU 1 \(waiting\) leads to 0x3, no VMA slot and no struct page$",
    "^the RCU queue of CPU 1 holds 1 objects, but counts 5$",
    r"^VMA \[.* is lost: slab_state 2",
    "^frame .* is lost",
    "^frame .* is lost",
    "^frame .* is lost",
)
def queue_leads_astray(good: GoodSegment) -> None:
    good.segment.words[_queue_word(good, RCU_QUEUE.wait_head)] = 3


@corruptions.reports(
    r"^the RCU queue of CPU 1 \(waiting\) runs in a circle through 0x",
    "^the RCU queue of CPU 1 holds 2 objects, but counts 5$",
    r"^VMA \[.* is lost: slab_state 2",
    "^frame .* is lost",
    "^frame .* is lost",
)
def queue_in_a_circle(good: GoodSegment) -> None:
    head = int(good.segment.words[_queue_word(good, RCU_QUEUE.wait_head)])
    page = good.segment.pages[(head - good.segment.address["vmemmap"]) // PAGE.SIZE]
    page["lru"] = head


@corruptions.parametrize
def test_reported(good: GoodSegment, corrupt: Corrupt, patterns: tuple[str, ...]) -> None:
    check_reported(good, corrupt, patterns)
