# SPDX-License-Identifier: MIT
"""An oracle that sees a promise broken leaves a record and stops its CPU."""

import types
from pathlib import Path

import pytest

from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.source import KernelSourceError
from spfemu.engines.stepped import StepEngine
from spfemu.errors import WorkerDiedError
from spfemu.layout import SYSTEM
from spfemu.measure.build import compose
from spfemu.measure.plan import Plan
from spfemu.mm.bug import Bug
from spfemu.segment import Geometry, Segment
from spfemu.stress import verdict
from spfemu.stress.mix.model import Wrong
from spfemu.stress.promises import Promise

ORACLE = """
from spfemu.kernel import around, proceed
from spfemu.stress.promises import Promise
from spfemu.stress.violation import stress_violation

@around
def sys_munmap(cpu: int, addr: int, length: int) -> int:
    if length == 4096:
        stress_violation(Promise.TLB, addr, length)
    return proceed(cpu, addr, length)
"""


@pytest.fixture
def make_oracle(tmp_path):
    """Make a module of kernel functions."""

    def make(text):
        name = f"oracle{len(list(tmp_path.iterdir()))}"
        module = types.ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        Path(module.__file__).write_text(text)
        exec(compile(text, module.__file__, "exec"), module.__dict__)
        return module

    return make


@pytest.fixture
def oracle(make_oracle):
    return make_oracle(ORACLE)


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_cpus=2, nr_frames=128, stress=1))
    yield made
    made.close()


@pytest.mark.parametrize("make_engine", [StepEngine, PlainEngine])
def test_the_first_violation_is_kept_and_stops_the_cpu(segment, oracle, make_engine):
    engine = make_engine(compose("mixed", oracles=[oracle]))
    for index, start in ((1, 1 << 30), (0, 1 << 31)):
        with pytest.raises(KernelPanic) as stopped:
            engine.call("sys_munmap", segment.cpu(index), start, 4096)
        assert stopped.value.code == Bug.PROMISE_BROKEN

    record = segment.stress[0]
    assert record["violation"] == record["frozen"] == 1
    assert record["kind"] == Promise.TLB
    assert record["cpu"] == segment.cpu(1)
    assert (record["a"], record["b"]) == (1 << 30, 4096)


def test_what_an_oracle_stands_around_is_left_out_where_nobody_calls_it(oracle):
    assert "sys_munmap" not in compose("brk1", oracles=[oracle]).functions


def test_an_oracle_may_stand_around_what_only_another_protocol_has(make_oracle):
    header = "from spfemu.kernel import around, proceed\n\n"
    text = "@around\ndef {0}(pvma: int, vma: int) -> None:\n    proceed(pvma, vma)\n"
    oracle = make_oracle(header + text.format("copy_pvma"))
    functions = compose("page_fault1", "spf", oracles=[oracle]).functions
    assert functions["copy_pvma__1"].file.endswith("spf.py")
    assert "copy_pvma" not in compose("page_fault1", "classic", oracles=[oracle]).functions
    oracle = make_oracle(header + text.format("copy_pvna"))
    with pytest.raises(KernelSourceError, match="'copy_pvna' is marked @around, and no kernel"):
        compose("page_fault1", "spf", oracles=[oracle])


def test_a_measured_program_knows_nothing_of_it():
    assert "stress_violation" not in compose("mixed").functions
    assert Geometry().areas()["stress_area"][1] == 0
    plain = Segment.create(Geometry(nr_frames=64))
    assert plain.word(plain.address["system"] + SYSTEM.stress) == 0
    plain.close()


def test_promises_say_what_they_are_and_what_their_break_means():
    assert [p.value for p in Promise] == list(range(1, 12))
    for promise in Promise:
        assert promise.promise.endswith(".")
        assert promise.broken.endswith(".")
        assert promise.__doc__ == f"{promise.promise}  {promise.broken}"


def test_the_death_of_a_worker_is_told_as_a_sentence(segment, monkeypatch):
    monkeypatch.setattr(verdict, "recent_history", lambda _segment, _prepared: "")
    prepared = types.SimpleNamespace(plan=None)
    error = WorkerDiedError("worker 0 (pid 7) was killed by SIGSEGV")

    found = verdict.of_death(segment, prepared, error)

    assert found.what == "Worker 0 (pid 7) was killed by SIGSEGV."


@pytest.mark.parametrize(
    ("wrong", "found", "said"),
    [(Wrong.READ, -14, "-EFAULT instead of 0"), (Wrong.VALUE, -14, "-14 instead of 0")],
)
def test_results_are_named_and_contents_are_numbers(segment, wrong, found, said):
    segment.cpus["failed"][1] = wrong
    segment.cpus["found"][1] = found
    plan = Plan("mixed", workers=2)

    broken = verdict.of_failure(segment, plan, 1)

    assert broken.what.endswith(f"{said}.")
    assert "On CPU 1, a worker" in broken.what
