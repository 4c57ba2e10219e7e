# SPDX-License-Identifier: MIT
"""The histories show what CPUs did last, by the names of kernel functions."""

import pytest

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.stepped import StepEngine
from spfemu.layout import HISTORY_ENTRIES, PAGE_SIZE
from spfemu.measure.build import compose
from spfemu.mm.flags import Map, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.history import HistoryTexts, read_history
from spfemu.stress.oracles import history

NAMES = ["worker 0", "worker 1"]
FAILING = """
from spfemu.kernel import kernel

@kernel
def workload_op(cpu: int) -> int:
    return -7
"""
LENGTH = 4 * PAGE_SIZE


@pytest.fixture(scope="module", params=[NativeEngine, StepEngine])
def engine(own_cache, request):
    return request.param(compose("mixed", "spf", oracles=[history]))


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_cpus=2, nr_frames=128, stress=1))
    made.mms["mm_users"] = 2
    yield made
    made.close()


def map_and_write(engine, segment, cpu):
    area = engine.call(
        "sys_mmap", cpu, 0, LENGTH, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS
    )
    assert engine.call("user_write", cpu, area, 7) == 0
    return area


def test_steps_of_all_cpus_are_in_order(engine, segment):
    engine.call("cpu_online", segment.cpu(0))
    area = map_and_write(engine, segment, segment.cpu(0))
    engine.call("cpu_online", segment.cpu(1))

    steps = read_history(segment, engine.sites)
    texts = HistoryTexts(engine.program, segment)
    said = [(s.cpu, s.depth, texts.step(s)) for s in steps]

    assert (0, 0, "cpu_online(cpu0)") in said
    assert said[-1][:2] == (1, 0)
    assert said[-1][2].startswith("cpu_online:")
    call = said.index((0, 0, "user_write(cpu0, ...)"))
    returned = next(i for i, s in enumerate(said) if s[2].startswith("user_write:"))
    inside = [text for _, depth, text in said[call + 1 : returned] if depth > 0]
    assert "do_user_addr_fault(cpu0, ...)" in inside
    assert not [text for text in inside if text.startswith(("count_vm_event", "vm_bug_on"))]
    mapped = next(s for s in steps if s.site.function == "sys_mmap" and s.word == area)
    assert mapped.site.primitive == "return"


def test_the_table_has_a_column_per_cpu(engine, segment):
    for cpu in (0, 1):
        engine.call("cpu_online", segment.cpu(cpu))
    steps = read_history(segment, engine.sites)
    head, *lines = HistoryTexts(engine.program, segment).table(steps, NAMES).splitlines()

    assert head.split() == ["cycles", "worker", "0", "worker", "1"]
    second = head.index("worker 1")
    assert "cpu_online(cpu0)" in lines[0]
    assert lines[-1].index("cpu_online:") == second
    assert lines[-1].split()[0] == "0"


def test_a_call_and_its_return_are_one_line_of_the_table(engine, segment):
    engine.call("cpu_online", segment.cpu(0))
    map_and_write(engine, segment, segment.cpu(0))
    steps = read_history(segment, engine.sites)
    table = HistoryTexts(engine.program, segment).table(steps, NAMES).splitlines()

    assert sum("pgd_offset(mm0, ...) = frame[1]+0x3f8" in line for line in table) > 0
    assert not [line for line in table if "pgd_offset:" in line]


def test_the_oldest_steps_make_room(engine, segment):
    engine.call("cpu_online", segment.cpu(0))
    area = map_and_write(engine, segment, segment.cpu(0))
    for _ in range(HISTORY_ENTRIES // 2):
        engine.call("user_write", segment.cpu(0), area, 1)

    steps = read_history(segment, engine.sites)

    assert len(steps) == HISTORY_ENTRIES
    assert "user_write" in {s.site.function for s in steps}
    assert "sys_mmap" not in {s.site.function for s in steps}
    assert min(s.depth for s in steps) == 0


def test_a_broken_promise_stops_it(engine, segment):
    engine.call("cpu_online", segment.cpu(0))
    before = read_history(segment, engine.sites)
    segment.stress["frozen"] = 1
    map_and_write(engine, segment, segment.cpu(0))
    assert read_history(segment, engine.sites) == before


def test_the_table_is_indented_from_the_outermost_of_its_calls(engine, segment):
    engine.call("cpu_online", segment.cpu(0))
    map_and_write(engine, segment, segment.cpu(0))
    steps = [step for step in read_history(segment, engine.sites) if step.depth >= 3]
    head, *lines = HistoryTexts(engine.program, segment).table(steps, NAMES).splitlines()

    indents = {len(line) - len(line[head.index("worker 0") :].lstrip()) for line in lines}
    assert min(indents) == head.index("worker 0")


@pytest.mark.parametrize("make_engine", [NativeEngine, StepEngine])
def test_histories_end_when_an_operation_fails(own_cache, make_engine, segment, tmp_path):
    """Else the others would go on for so long that the table does not show who failed."""
    override = tmp_path / "failing.py"
    override.write_text(FAILING)
    engine = make_engine(compose("mixed", "spf", oracles=[history], overrides=[str(override)]))
    for cpu in (0, 1):
        engine.call("cpu_online", segment.cpu(cpu))
    assert engine.call("worker_operation", segment.cpu(0)) == -7
    map_and_write(engine, segment, segment.cpu(1))

    steps = read_history(segment, engine.sites)

    texts = HistoryTexts(engine.program, segment)
    assert texts.step(steps[-1]).endswith("returns -7")
    assert steps[-1].cpu == 0


@pytest.mark.parametrize("make_engine", [PlainEngine, StepEngine])
def test_histories_end_when_an_assertion_fails(own_cache, make_engine, segment):
    config = {"CONFIG_DEBUG_VM": 1}
    engine = make_engine(compose("mixed", "spf", oracles=[history], config=config))
    engine.call("cpu_online", segment.cpu(0))
    assert segment.stress["frozen"] == 0
    with pytest.raises(KernelPanic):
        engine.call("fput", segment.cpu(0), segment.address["files"])
    assert segment.stress["frozen"] == 1
