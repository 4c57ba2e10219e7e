# SPDX-License-Identifier: MIT
"""CPUs delay at sites that change, and nowhere unless they are told to."""

import pytest

from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.layout import PAGE_SIZE
from spfemu.measure.build import compose
from spfemu.mm.flags import Map, Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.delays import focus_sites, set_delays
from spfemu.stress.oracles import delays, torn_read

LENGTH = 4 * PAGE_SIZE
ROUNDS = 200


@pytest.fixture(scope="module")
def engine(own_cache):
    return NativeEngine(compose("mixed", "spf", oracles=[delays]))


@pytest.fixture
def segment(engine):
    made = Segment.create(Geometry(nr_frames=128, stress=1))
    made.mms["mm_users"] = 2
    engine.call("cpu_online", made.cpu(0))
    yield made
    made.close()


def use_memory(engine, segment):
    """Map, write and unmap for some time; the hot sites seen meanwhile."""
    cpu, hot = segment.cpu(0), set()
    for i in range(ROUNDS):
        area = engine.call(
            "sys_mmap", cpu, 0, LENGTH, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS
        )
        assert engine.call("user_write", cpu, area, i) == 0
        hot.add(int(segment.stress_cpus["hot_site"][0]) - 1)
        assert engine.call("sys_munmap", cpu, area, LENGTH) == 0
    return hot - {-1}


def test_nothing_is_delayed_until_it_is_asked_for(engine, segment):
    assert use_memory(engine, segment) == set()
    assert segment.stress_cpus["nr_delays"][0] == 0


def test_hot_sites_are_those_that_are_passed(engine, segment):
    use_memory(engine, segment)
    passed = segment.stress["sites"][0][: int(segment.stress["nr_sites"][0])].tolist()
    assert len(set(passed)) == len(passed) > 100
    functions = {engine.sites[site].function for site in passed}
    assert {"do_anonymous_write", "zap_ptes"} <= functions
    assert "do_fork" not in functions

    set_delays(segment, seed=7, cycles_per_second=1e9, epoch=1e-9, spin=1e-6, sleep=1e-6)
    hot = use_memory(engine, segment)

    assert len(hot) > 10
    assert hot <= set(passed)
    assert segment.stress_cpus["nr_delays"][0] > 10


def test_what_runs_is_the_same(engine, segment):
    set_delays(segment, seed=8, cycles_per_second=1e9, epoch=1e-9, spin=1e-6, sleep=1e-6)
    use_memory(engine, segment)
    engine.call("cpu_offline", segment.cpu(0))
    segment.mms["mm_users"] = 1
    assert check_segment(segment) == []


def test_they_end_when_the_run_stops(engine, segment):
    use_memory(engine, segment)
    segment.system["stop"] = 1
    set_delays(segment, seed=9, cycles_per_second=1e9, epoch=1e-9, spin=2.0, sleep=1e-6)
    use_memory(engine, segment)  # would take minutes
    assert segment.stress_cpus["nr_delays"][0] > 0


def test_the_focus_is_what_an_override_replaces_and_who_calls_it(tmp_path, own_cache):
    path = tmp_path / "gate.py"
    path.write_text(
        "from spfemu.kernel import kernel\n"
        "from spfemu.primitives import cmpxchg_acquire\n"
        "@kernel\ndef spin_trylock(cpu: int, lock: int) -> int:\n"
        "    return cmpxchg_acquire(lock, 0, 1) == 0\n"
    )
    program = compose("mixed", "spf", overrides=[str(path)], oracles=[delays, torn_read])
    engine = NativeEngine(program)

    focus = focus_sites(program, engine.sites)

    functions = {program.functions[engine.sites[i].function].tree.name for i in focus}
    assert {"spin_trylock", "pte_map_lock_speculative", "copy_pvma"} <= functions
    assert "zap_ptes" not in functions
