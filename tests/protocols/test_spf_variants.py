# SPDX-License-Identifier: MIT
"""The two experiments on spf: a count per VMA, and the precise end check that is unsafe."""

import pytest
from mutants import engine_with, finds

from spfemu.checks import check_segment
from spfemu.engines.script import ScriptError, after, before
from spfemu.engines.stepped import StepEngine
from spfemu.measure import build
from spfemu.mm.flags import Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process, Threads, program

AREA = 1 << 40
SHARED = AREA + 4096
ELSEWHERE = 1 << 41
READ = int(Prot.READ)


REUSE = """
from spfemu.kernel import kernel
from spfemu.layout import PAGE
from spfemu.primitives import read_once

@kernel
def wp_can_reuse(page: int) -> int:
    return read_once(page + PAGE.{field}) == 1
"""


def finish(cpu):
    """Run a call to its end; CPU 0, which is busy, takes the interrupt of its flush if any.

    Hardware takes it between any two instructions, an emulated CPU where it polls.
    """
    try:
        cpu.runs_to_end()
    except ScriptError:
        cpu.script.engine.call("irq_poll", cpu.script.process.segment.cpu(0))
        cpu.runs_to_end()


def play(engine):
    """Play the order in the docstring of spf_relookup.py; returns the word that A2 wrote."""
    segment = Segment.create(Geometry(nr_cpus=3, nr_spare_mms=1))
    process = Process(engine, segment)
    process.map(AREA, 16)
    process.write(SHARED, 5)
    child = process.call("fork")
    with Threads(process) as threads:
        a1 = threads.thread("A", "write", SHARED + 8, 1)
        a1.runs_until(after("copy_page"))
        process.call("mmput", child)
        finish(threads.thread("B", "write", SHARED, 6))
        for name, rights in (("C", READ), ("D", RW)):
            call = "thread_mprotect", segment.cpu(2), SHARED, 4096, rights
            finish(threads.cpu(name, *call))
        assert a1.runs_to_end() == 0
    value = process.read(SHARED)
    assert check_segment(segment) == []
    segment.close()
    return value


@pytest.mark.parametrize(
    ("protocol", "reuse", "value"),
    [
        ("spf-relookup", "mapcount", 5),
        ("spf-relookup", "refcount", 6),
        ("spf", "mapcount", 6),
        ("spf", "refcount", 6),
        ("spf-vma", "mapcount", 6),
    ],
)
def test_what_looks_unchanged_may_have_lost_a_write(own_cache, tmp_path, protocol, reuse, value):
    """The write is lost where the end check is precise and pages are reused by their mappings."""
    path = tmp_path / "reuse.py"
    path.write_text(REUSE.format(field=reuse))
    version = {"CONFIG_LINUX_VERSION": (5 << 8) + 12}  # later ones save the fault after mprotect
    engine = StepEngine(program(protocol, (str(path),), **version))
    assert play(engine) == value


def test_the_list_of_protocols_says_that_it_is_unsafe():
    assert "UNSAFE" in build.list_protocols()["spf-relookup"]


@pytest.fixture
def area(under):
    """An area in which speculation succeeds."""
    under.map(AREA, 16)
    under.write(AREA, 1)
    return AREA


PROTOCOL = "spf-relookup"


@pytest.mark.parametrize(
    "point",
    [
        after("mmap_seq_read_check"),
        after("speculation_holds"),
        after("spin_trylock"),
        before("set_pte"),
    ],
    ids=str,
)
def test_writers_elsewhere_do_not_abort(under, scripted, area, point):
    a = scripted.thread("A", "write", SHARED, 7)
    a.runs_until(point)
    scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32).runs_to_end()
    assert a.runs_to_end() == 0
    assert under.aborts() == {}


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (after("mmap_seq_read_check"), "SEQ1"),
        (after("speculation_holds"), "SEQ2"),
        (before("spin_trylock"), "SEQ2"),
    ],
    ids=str,
)
def test_a_vma_that_differs_aborts(under, scripted, area, point, reason):
    under.map(ELSEWHERE, 4)
    under.write(ELSEWHERE, 1)
    under.call("dontneed", ELSEWHERE, 4 << 12)
    a = scripted.thread("A", "read", ELSEWHERE)
    a.runs_until(point)
    assert under.call("mprotect", ELSEWHERE, 4 << 12, int(Prot.EXEC)) == 0
    assert a.runs_to_end() == (0, 0)
    assert under.aborts() == {f"PTE_MAP_LOCK_{reason}": 1}


def test_a_writer_inside_cannot_be_looked_past(under, scripted, area):
    a = scripted.thread("A", "write", SHARED, 7)
    b = scripted.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32)
    a.runs_until(after("mmap_seq_read_check"))
    b.runs_until(after("mmap_seq_write_enter"))
    assert a.runs_to_end(letting=[b]) == 0
    b.runs_to_end()
    assert under.aborts() == {"PTE_MAP_LOCK_SEQ1": 1}


def test_tables_of_an_equal_vma_may_be_others(under, scripted, area):
    """Without an anon_vma, a VMA that is mapped again cannot be told from the old one."""
    under.map(ELSEWHERE, 4)
    assert under.read(ELSEWHERE) == 0
    under.call("dontneed", ELSEWHERE, 4 << 12)
    a = scripted.thread("A", "read", ELSEWHERE)
    a.runs_until(before("pte_map_lock"))
    finish(scripted.thread("B", "munmap", ELSEWHERE, 4 << 12))
    under.map(ELSEWHERE, 4)
    assert a.runs_to_end() == (0, 0)
    assert under.aborts() == {"PTE_MAP_LOCK_PMD": 1}


def test_the_look_under_the_lock_is_needed(own_cache):
    engine = engine_with(
        PROTOCOL,
        """
from spfemu.protocols.spf import speculative_page_walk_begin, speculative_page_walk_end
@kernel
def pte_map_lock_speculative(cpu: int, vmf: int) -> int:
    speculative_page_walk_begin(cpu)
    reason = Event.SPF_ABORT_PTE_MAP_LOCK_SEQ1
    if mmap_seq_read_check(cpu, load(cpu + CPU.mm), load(vmf + VMF.seq), reason) == 0:
        speculative_page_walk_end(cpu)
        return 0
    pmd = load(vmf + VMF.orig_pmd)
    ptl = pte_lockptr(cpu, pmd)
    spin_lock(cpu, ptl)
    speculative_page_walk_end(cpu)
    store(vmf + VMF.pte, pte_offset(pmd, load(vmf + VMF.address)))
    store(vmf + VMF.ptl, ptl)
    return 1
""",
    )
    assert finds(engine, [("A", "write", SHARED, 7), ("B", "munmap", AREA, 16 << 12)])


# spf-counted


@pytest.fixture
def counted(engine_of):
    """A process under spf-counted with an area in which speculation succeeds."""
    segment = Segment.create(Geometry(nr_cpus=3))
    process = Process(engine_of("spf-counted"), segment)
    process.map(AREA, 16)
    process.write(AREA, 1)
    yield process
    assert check_segment(segment) == []
    segment.close()


def fault_counts(process):
    return process.segment.vmas["fault_count"].sum()


def test_the_count_goes_up_and_down(counted):
    with Threads(counted) as threads:
        a = threads.thread("A", "write", SHARED, 7)
        a.runs_until(before("set_pte"))
        assert fault_counts(counted) == 1
        assert a.runs_to_end() == 0
    assert fault_counts(counted) == 0
    assert counted.aborts() == {}


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (after("__find_vma"), "VMA_COPY"),
        (after("mmap_seq_read_check"), "PTE_MAP_LOCK_SEQ1"),
        (after("mmap_seq_read_check", inside="pte_map_lock_speculative"), "PTE_MAP_LOCK_SEQ2"),
    ],
    ids=str,
)
def test_aborts_are_those_of_spf_and_count_down(counted, point, reason):
    with Threads(counted) as threads:
        a = threads.thread("A", "write", SHARED, 7)
        a.runs_until(point)
        threads.thread("B", "mmap", ELSEWHERE, 4096, RW, 0x32).runs_to_end()
        assert a.runs_to_end() == 0
    assert fault_counts(counted) == 0
    assert counted.aborts() == {reason: 1}


def test_the_checks_see_a_count_that_stays_up(own_cache):
    engine = engine_with(
        "spf-counted",
        """
@kernel
def speculate_on_copy(cpu: int, mm: int, address: int, flags: int, seq: int) -> int:
    count_vm_event(cpu, Event.SPF_ABORT_ODD)
    atomic_fetch_add(__find_vma(cpu, mm, address) + VMA.fault_count, 1)
    return VmFault.RETRY
""",
    )
    assert finds(engine, [("A", "write", SHARED, 7)])
