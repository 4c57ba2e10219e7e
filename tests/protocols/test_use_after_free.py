# SPDX-License-Identifier: MIT
"""The oracle kasan sees what is touched after it was freed, and nothing else."""

import numpy as np
import pytest
from test_random_schedules import AREA, CALLS, PAGE, outcome

from spfemu.checks import check_segment
from spfemu.engines.plain import KernelPanic
from spfemu.engines.script import after, before, waits
from spfemu.engines.stepped import StepEngine
from spfemu.engines.symbols import symbol
from spfemu.layout import QUARANTINE, SHADOW
from spfemu.mm.bug import Bug
from spfemu.mm.flags import PAGE_KIND_MASK, PageKind, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.oracles import kasan
from spfemu.stress.promises import Promise
from spfemu.stress.quarantine import set_quarantine
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads, program

SEEDS = range(3)
NEW = AREA + (1 << 30)
"""Mapped, but nobody has been there: to unmap it takes no flush."""
LENGTH = 4 << 12
HEADER = """
from spfemu.kernel import *
from spfemu.layout import *
from spfemu.mm.flags import *
from spfemu.mm.pgtable import *
from spfemu.mm.spinlock import *
from spfemu.mm.vma import *
from spfemu.primitives import *
"""

# Kernels with broken functions; which one is broken, a word of the segment says (0: none), so that
# few programs are compiled.
VMA_AT_ONCE, TABLE_BEFORE_FLUSH, LOCK_WITHOUT_TABLE, NO_FLUSH, LOST_REFERENCE = range(1, 6)
SPF = """
@kernel
def broken() -> int:
    return load(load(load(this_cpu() + CPU.system) + SYSTEM.scratch))


@around
def vm_area_free(cpu: int, vma: int) -> None:
    if broken() == 1:
        vm_area_free_rcu(cpu, vma)
    else:
        proceed(cpu, vma)


@around
def tlb_remove_table(cpu: int, page: int) -> None:
    if broken() == 2:
        free_table_now(cpu, page)
    else:
        proceed(cpu, page)


@around
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    if broken() != 3:
        return proceed(cpu, vmf)
    pmd = load(vmf + VMF.orig_pmd)
    ptl = pte_lockptr(cpu, pmd)
    if spin_trylock(cpu, ptl) == 0:
        return 0
    store(vmf + VMF.pte, pte_offset(pmd, load(vmf + VMF.address)))
    store(vmf + VMF.ptl, ptl)
    return 1


@around
def flush_tlb_mm(cpu: int, mm: int) -> None:
    if broken() != 4:
        proceed(cpu, mm)


@around
def anon_vma_chain_link(vma: int, avc: int, anon_vma: int) -> None:
    proceed(vma, avc, anon_vma)
    if broken() == 5:
        store(anon_vma + ANON_VMA.refcount, 1)
"""
NOBODY_WAITS, MM_NOT_KEPT = 6, 7
REFCOUNT = """
@kernel
def broken() -> int:
    return load(load(load(this_cpu() + CPU.system) + SYSTEM.scratch))


@around
def vma_start_write(cpu: int, vma: int) -> None:
    if broken() != 6:
        proceed(cpu, vma)


@around
def vma_mark_detached(cpu: int, vma: int) -> None:
    if broken() == 6:
        atomic_fetch_add(vma + VMA.vm_refcnt, -2)
    else:
        proceed(cpu, vma)


@around
def mmgrab(mm: int) -> None:
    if broken() != 7:
        proceed(mm)


@around
def mmdrop(cpu: int, mm: int) -> None:
    if broken() != 7 or load(cpu + CPU.id) != 0:
        proceed(cpu, mm)
"""


@pytest.fixture(scope="module")
def broken_engine(own_cache, tmp_path_factory):
    """Make the stepped kernel with the oracle and broken functions."""

    def make(protocol, text):
        path = tmp_path_factory.mktemp(protocol) / "broken.py"
        path.write_text(HEADER + text)
        # without the kernel's own assertions, which would see some of it first
        config = {"CONFIG_DEBUG_VM": 0, "CONFIG_MMU_GATHER_RCU_TABLE_FREE": 0}
        return StepEngine(program(protocol, (str(path),), oracles=[kasan], **config))

    return make


@pytest.fixture(scope="module")
def broken_spf(broken_engine):
    return broken_engine("spf", SPF)


@pytest.fixture(scope="module")
def broken_refcount(broken_engine):
    return broken_engine("vma-refcount", REFCOUNT)


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_cpus=3, stress=1))
    yield made
    made.close()


KEPT = 16
"""Objects, and frames, that a CPU keeps from reuse, where it does."""


def prepared(engine, segment, broken=0, kept=0):
    """A process with both areas mapped and AREA used; from here on something is broken."""
    process = Process(engine, segment)
    segment.stress["quarantine"] = kept
    process.map(AREA, 4)
    process.map(NEW, 4)
    process.write(AREA, 1)
    segment.words[(segment.scratch(0) - segment.base) // 8] = broken
    return process


def found(engine, segment):
    """What was touched, who had freed it and where."""
    record = segment.stress[0]
    assert record["kind"] == Promise.USE_AFTER_FREE
    shadow = segment.shadow[(int(record["b"]) - segment.address["shadow"]) // SHADOW.SIZE]
    assert shadow["time"] < record["time"]
    freed_in = engine.sites[int(shadow["site"]) - 1].function
    return symbol(segment, int(record["a"])), symbol(segment, int(shadow["freed_by"])), freed_in


def touched(cpu):
    """Let a CPU go on to where it touches what is free."""
    with pytest.raises(KernelPanic) as stopped:
        cpu.runs_to_end()
    assert stopped.value.code == Bug.PROMISE_BROKEN
    return found(cpu.script.engine, cpu.script.process.segment)


@pytest.mark.parametrize("protocol", ["spf", "spf-vma-v11", "vma-refcount"])
def test_protocols_touch_nothing_that_is_free(own_cache, segment, protocol):
    process = Process(StepEngine(program(protocol, oracles=[kasan])), segment)
    for calls in CALLS.values():
        for prepared in ("fresh", "written"):
            for seed in SEEDS:
                _results, violations, schedule = outcome(process, calls, seed, prepared)
                assert violations == [], (seed, schedule)


def test_a_vma_freed_without_a_grace_period(broken_spf, segment):
    with Threads(prepared(broken_spf, segment, VMA_AT_ONCE)) as threads:
        a, b = threads.thread("A", "write", NEW, 7), threads.thread("B", "munmap", NEW, LENGTH)
        a.runs_until(before("copy_pvma"))
        b.runs_to_end()
        object_, freed_by, freed_in = touched(a)
    assert object_.startswith("vma[")
    assert (freed_by, freed_in) == ("cpu1", "vm_area_free_rcu")


def test_a_table_freed_before_the_flush(broken_spf, segment):
    with Threads(prepared(broken_spf, segment, TABLE_BEFORE_FLUSH)) as threads:
        a, b = threads.thread("A", "write", PAGE, 7), threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(before("pte_offset", inside="do_handle_mm_fault"))
        b.runs_until(waits())
        object_, freed_by, freed_in = touched(a)
    assert object_.startswith("frame[")
    assert (freed_by, freed_in) == ("cpu1", "free_table_now")


def test_a_lock_taken_when_nothing_keeps_its_table(broken_spf, segment):
    with Threads(prepared(broken_spf, segment, LOCK_WITHOUT_TABLE)) as threads:
        a, b = threads.thread("A", "write", PAGE, 7), threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(before("speculative_page_walk_end"))
        b.runs_until(waits())
        a.runs_until(before("pte_map_lock_speculative"))
        b.runs_to_end()
        object_, freed_by, freed_in = touched(a)
    assert object_.endswith("].ptl")
    assert (freed_by, freed_in) == ("cpu1", "free_table_now")


def test_a_frame_freed_before_the_flush(broken_spf, segment):
    with Threads(prepared(broken_spf, segment, NO_FLUSH)) as threads:
        a, b = threads.thread("A", "write", AREA, 7), threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(after("translate"))
        b.runs_to_end()
        object_, freed_by, freed_in = touched(a)
    assert object_.startswith("frame[")
    assert (freed_by, freed_in) == ("cpu1", "put_page")


def test_an_anon_vma_freed_while_another_vma_has_it(broken_spf, segment):
    process = prepared(broken_spf, segment, LOST_REFERENCE)
    process.call("mprotect", AREA, 4096, int(Prot.READ))
    process.call("munmap", AREA, 4096)
    with pytest.raises(KernelPanic):
        process.call("munmap", AREA + 4096, LENGTH - 4096)
    object_, freed_by, freed_in = found(broken_spf, segment)
    assert object_.startswith("anon_vma[")
    assert (freed_by, freed_in) == ("cpu2", "anon_vma_free")


def test_a_vma_freed_while_a_fault_has_a_reference(broken_refcount, segment):
    with Threads(prepared(broken_refcount, segment, NOBODY_WAITS)) as threads:
        a, b = threads.thread("A", "write", NEW, 7), threads.thread("B", "munmap", NEW, LENGTH)
        a.runs_until(before("handle_mm_fault"))
        b.runs_to_end()
        object_, freed_by, freed_in = touched(a)
    assert object_.startswith("vma[")
    assert (freed_by, freed_in) == ("cpu1", "vm_area_free_rcu")


def test_a_vma_used_again_while_a_fault_has_a_reference(broken_refcount, segment):
    process = prepared(broken_refcount, segment, NOBODY_WAITS)
    with Threads(process) as threads:
        a, b = threads.thread("A", "write", NEW, 7), threads.thread("B", "munmap", NEW, LENGTH)
        a.runs_until(before("handle_mm_fault"))
        b.runs_to_end()
        assert process.call("mmap", NEW, LENGTH, RW, FIXED, cpu=1) == NEW
        object_, _, _ = touched(a)
    assert object_.startswith("vma[")


@pytest.fixture
def two_processes(broken_refcount):
    """CPUs 0 and 1 run a process that has NEW mapped, CPU 2 another one."""
    segment = Segment.create(Geometry(nr_cpus=3, nr_mms=2, stress=1))
    process = Process(broken_refcount, segment)
    assert process.call("mmap", NEW, LENGTH, RW, FIXED, cpu=0) == NEW
    yield process
    segment.close()


def end_other_process_beside_a_reference(process, threads, broken):
    """A has a reference to a VMA that the other process got; that unmaps it and ends.

    Returns A, which has dropped it and is about to wake whoever waits for that.
    """
    segment, engine = process.segment, process.engine
    segment.words[(segment.scratch(0) - segment.base) // 8] = broken
    a = threads.thread("A", "write", NEW, 7)
    a.runs_until(after("__find_vma", inside="lock_vma_under_rcu"))
    assert process.call("munmap", NEW, LENGTH, cpu=1) == 0
    engine.call("switch_mm", segment.cpu(1), segment.mm(1))
    assert process.call("mmap", NEW, LENGTH, RW, FIXED, cpu=1) == NEW
    a.runs_until(after("cmpxchg_acquire", inside="vma_start_read"))
    b = threads.thread("B", "munmap", NEW, LENGTH)
    b.runs_until(after("cmpxchg_acquire", inside="vma_enter_locked"))
    a.runs_until(before("vma_wake_writer"))
    b.runs_to_end()
    for cpu in (1, 2):
        engine.call("switch_mm", segment.cpu(cpu), segment.mm(0))
    segment.mms["mm_users"][1] = 1
    engine.call("mmput", segment.cpu(1), segment.mm(1))
    return a


def test_a_process_that_ends_before_it_is_woken(two_processes):
    with Threads(two_processes) as threads:
        a = end_other_process_beside_a_reference(two_processes, threads, MM_NOT_KEPT)
        object_, freed_by, freed_in = touched(a)
    assert object_ == "mm1.vma_writer_wait"
    assert (freed_by, freed_in) == ("cpu1", "mm_slot_free")


def test_a_reference_keeps_a_process_that_ends_until_it_is_woken(two_processes):
    with Threads(two_processes) as threads:
        a = end_other_process_beside_a_reference(two_processes, threads, 0)
        assert two_processes.segment.mms["in_use"].tolist() == [1, 1]
        a.runs_to_end()
    assert two_processes.segment.mms["in_use"].tolist() == [1, 0]


def test_a_double_free(broken_spf, segment):
    prepared(broken_spf, segment)
    cpu = segment.cpu(0)
    avc = broken_spf.call("anon_vma_chain_alloc", cpu)
    broken_spf.call("anon_vma_chain_free", cpu, avc)
    with pytest.raises(KernelPanic):
        broken_spf.call("anon_vma_chain_free", cpu, avc)
    assert found(broken_spf, segment)[0] == "avc[0]"


# The quarantine: what comes so late that the object is somebody else's


def late_access(engine, segment, kept):
    """A has looked up a frame that B unmaps, without a flush, and uses for what it maps next."""
    process = prepared(engine, segment, NO_FLUSH, kept)
    threads = Threads(process)
    a, b = threads.thread("A", "write", AREA, 7), threads.thread("B", "munmap", AREA, LENGTH)
    a.runs_until(after("translate"))
    b.runs_to_end()
    assert process.call("write", NEW, 1, cpu=1) == 0
    assert process.call("write", NEW + 4096, 1, cpu=1) == 0
    return threads, a


def late_lookup(engine, segment, kept):
    """A is about to copy a VMA that B frees at once and uses for another mapping."""
    process = prepared(engine, segment, VMA_AT_ONCE, kept)
    threads = Threads(process)
    a, b = threads.thread("A", "write", NEW, 7), threads.thread("B", "munmap", NEW, LENGTH)
    a.runs_until(before("copy_pvma"))
    b.runs_to_end()
    assert process.call("mmap", NEW, LENGTH, RW, FIXED, cpu=1) == NEW
    return threads, a


@pytest.mark.parametrize(
    ("late", "kind", "freed_in"),
    [(late_access, "frame[", "put_page"), (late_lookup, "vma[", "vm_area_free_rcu")],
)
def test_a_touch_behind_the_next_use_is_seen_in_quarantine_only(
    broken_spf, segment, late, kind, freed_in
):
    threads, a = late(broken_spf, segment, 0)
    with threads:
        a.runs_to_end()
    assert segment.stress["violation"] == 0
    threads, a = late(broken_spf, segment, KEPT)
    with threads:
        object_, freed_by, found_in = touched(a)
    assert object_.startswith(kind)
    assert (freed_by, found_in) == ("cpu1", freed_in)


def test_a_double_free_of_what_is_kept(broken_spf, segment):
    prepared(broken_spf, segment, kept=KEPT)
    cpu = segment.cpu(0)
    avc = broken_spf.call("anon_vma_chain_alloc", cpu)
    broken_spf.call("anon_vma_chain_free", cpu, avc)
    assert broken_spf.call("anon_vma_chain_alloc", cpu) != avc
    with pytest.raises(KernelPanic):
        broken_spf.call("anon_vma_chain_free", cpu, avc)
    assert found(broken_spf, segment)[0] == "avc[0]"


def kept(segment):
    """How many objects and frames each CPU keeps."""
    cpus = segment.stress_cpus
    nr = QUARANTINE.nr // 8
    return cpus["kept_objects"][:, nr].tolist(), cpus["kept_frames"][:, nr].tolist()


def use_and_free(process, cpu, times=1):
    """Map, fill and unmap pages on a CPU; what RCU keeps has been freed then."""
    for _ in range(times):
        assert process.call("mmap", NEW, LENGTH, RW, FIXED, cpu=cpu) == NEW
        for page in range(4):
            assert process.call("write", NEW + (page << 12), 1, cpu=cpu) == 0
        assert process.call("munmap", NEW, LENGTH, cpu=cpu) == 0


def test_what_is_kept_is_bounded_and_given_back_in_the_end(broken_spf, segment):
    process = prepared(broken_spf, segment, kept=KEPT)
    use_and_free(process, 0, times=2 * KEPT)
    assert kept(segment)[1][0] == KEPT
    assert any("is lost" in message for message in check_segment(segment))
    process.engine.call("cpu_idle_exit", segment.cpu(0))
    process.engine.call("cond_resched", segment.cpu(0))
    assert kept(segment)[1][0] == KEPT // 2
    for index in range(3):
        process.engine.call("cpu_idle_exit", segment.cpu(index))
        process.engine.call("rcu_barrier", segment.cpu(index))
        process.engine.call("cpu_idle_enter", segment.cpu(index))
    assert kept(segment) == ([0, 0, 0], [0, 0, 0])
    assert check_segment(segment) == []


def test_what_all_cpus_keep_is_there_for_who_finds_nothing_else(broken_spf, segment):
    process = prepared(broken_spf, segment, kept=KEPT)
    call = process.engine.call
    for index in range(3):
        use_and_free(process, index)
    objects, frames = kept(segment)
    assert min(objects + frames) > 0
    cpu = segment.cpu(0)
    call("cpu_idle_exit", cpu)
    free = np.count_nonzero(segment.pages["flags"] & PAGE_KIND_MASK == PageKind.FREE)
    taken = 0
    while call("alloc_page", cpu, int(PageKind.ANON)):
        taken += 1
    assert kept(segment) == ([0, 0, 0], [0, 0, 0])
    assert taken == free


def test_slots_of_others_are_there_for_who_finds_no_other(broken_spf, segment):
    process = prepared(broken_spf, segment, kept=KEPT)
    for index in range(3):
        use_and_free(process, index)
    cpu = segment.cpu(0)
    process.engine.call("cpu_idle_exit", cpu)
    taken = 0
    while process.engine.call("vma_slab_alloc", cpu):
        taken += 1
    assert kept(segment)[0] == [0, 0, 0]
    assert taken == segment.geometry.nr_vmas - 1


def test_hunts_keep_what_is_freed_in_every_other_round(segment):
    kept_by_round = []
    for seed in range(4):
        set_quarantine(segment, seed)
        kept_by_round.append(int(segment.stress["quarantine"][0]))
    assert kept_by_round == [10, 0, 10, 0]
