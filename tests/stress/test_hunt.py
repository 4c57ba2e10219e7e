# SPDX-License-Identifier: MIT
"""The hunt: clean on every protocol that claims to be safe, and it catches what is planted."""

import dataclasses
import json
import os
import re
import signal
from collections import Counter
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner

from spfemu import results
from spfemu.cli.app import cli
from spfemu.engines.source import Program
from spfemu.errors import ExitCode, UsageError, WorkerKilledError
from spfemu.measure.workers import Workers
from spfemu.stress import hunt as hunts
from spfemu.stress import report, stepping
from spfemu.stress.hunt import HuntPlan, hunt
from spfemu.stress.mutant import mutants
from spfemu.stress.promises import Promise
from spfemu.stress.verdict import Violation

HUNTED = ("spf", "vma-refcount")
"""A few seconds of what .ci/run does for a minute in every protocol."""
KERNEL = "from spfemu.kernel import kernel, slowpath\nfrom spfemu.primitives import *\n"


def prepare_nothing(*_arguments):
    """What there is to run where no round is run: as if loaded from a file changed since."""
    return SimpleNamespace(program=Program({}, {}, files=(("mine.py", "as loaded"),)))


@pytest.fixture
def override(tmp_path):
    """Return a function that writes an override file."""

    def write(text, name="mutant.py"):
        path = tmp_path / name
        path.write_text(KERNEL + text)
        return str(path)

    return write


@pytest.mark.parametrize("protocol", HUNTED)
def test_nothing_is_found_in_what_is_sound(protocol):
    result = hunt(HuntPlan(protocol, seconds=2.0, hang_seconds=60.0))

    assert result.violation is None, (hex(result.seed), str(result.violation))
    assert result.operations > 0
    assert result.rounds > 0
    # faults have waited for a monitor, and the hunt has been the monitor
    assert result.events["UFFD_WAIT"] > 0
    assert result.events["UFFD_COPY"] > 0


def test_a_write_that_the_monitor_has_not_allowed_is_found():
    path = mutants()["mprotect_ends_write_protection"].path
    result = hunt(HuntPlan("classic", seconds=120.0, overrides=(path,)))

    assert result.violation is not None
    # unless the round is over before anybody writes to such a page
    assert result.violation.promise in (Promise.OUTCOME, Promise.ACCOUNTING)


UNLOCKED = """
from spfemu.layout import VMA
from spfemu.mm.bug import Bug

@kernel
def mmap_seq_write_leave(mm: int) -> None:
    return
"""


def test_a_count_that_stays_odd_is_found_by_the_oracle_of_the_sequence(override):
    result = hunt(HuntPlan("spf", seconds=60.0, overrides=(override(UNLOCKED),)))

    assert result.violation is not None
    assert result.violation.promise is Promise.SEQUENCE
    assert "mmap" in result.violation.history


NO_DROP = """
from spfemu.layout import CPU

@kernel
def flush_tlb_others(cpu: int, mm: int) -> None:
    return
"""


def test_a_missing_flush_is_found(override):
    result = hunt(HuntPlan("classic", seconds=120.0, overrides=(override(NO_DROP),)))

    assert result.violation is not None
    assert result.violation.promise in (Promise.DATA, Promise.OUTCOME, Promise.USE_AFTER_FREE)


FORGETS_TO_LOCK = """
@kernel
def apply_mlockall_flags(cpu: int, mm: int, flags: int) -> None:
    return
"""


def test_an_mlockall_that_locks_nothing_is_found(override):
    result = hunt(HuntPlan("spf", seconds=120.0, overrides=(override(FORGETS_TO_LOCK),)))

    assert result.violation is not None
    # what was to be locked is dropped, which somebody else may be the first to say
    assert result.violation.promise in (Promise.OUTCOME, Promise.DATA)


def test_a_report_repeats_the_round_and_loads_no_override_by_itself(override, tmp_path):
    path = override(UNLOCKED)
    found = tmp_path / "report.json"
    arguments = ["stress", "--seconds", "60", "--report", str(found), "-q"]
    first = CliRunner().invoke(cli, [*arguments, "--override", path])
    assert first.exit_code == 1, first.output
    again = ["stress", "--replay", str(found), "--report", str(found), "--seconds", "60", "-q"]

    refused = CliRunner().invoke(cli, again)
    repeated = CliRunner().invoke(cli, [*again, "--override", path])

    assert refused.exit_code == 2
    assert "was made with other overrides" in refused.output
    assert repeated.exit_code == 1
    assert "SEQUENCE" in repeated.output
    plan = report.read(str(found), (path,), 1.0)
    assert plan.seed == json.loads(found.read_text())["violation"]["round_seed"]


def test_a_replay_does_the_operations_of_one_round_again_and_again(monkeypatch):
    seeds = []

    def run_round(_plan, _prepared, _segments, seed, _result, _left, _progress):
        seeds.append(seed)
        return Violation(Promise.DATA, "check", "It is wrong.") if len(seeds) == 3 else None

    monkeypatch.setattr(hunts, "prepare", prepare_nothing)
    monkeypatch.setattr(hunts, "run_round", run_round)

    assert hunt(HuntPlan(seed=5, seconds=60.0, repeat=True)).round_seed == 5
    assert seeds == [5, 5, 5]


def test_a_long_start_of_a_round_is_told(monkeypatch):
    told = []

    def run_round(_plan, _prepared, _segments, _seed, _result, _left, progress):
        progress("forking worker 16 of 65", None)
        return Violation(Promise.DATA, "check", "It is wrong.")

    monkeypatch.setattr(hunts, "prepare", prepare_nothing)
    monkeypatch.setattr(hunts, "run_round", run_round)
    hunt(HuntPlan(seconds=60.0), lambda message, _done: told.append(message))

    assert told[-1] == f"{told[-2]}, forking worker 16 of 65"


def written_report(path, **changed):
    """Write a report that a hunt without overrides could have written, but for what is changed."""
    plan = HuntPlan("classic", seed=5)
    violation = Violation(Promise.DATA, "check", "It is wrong.")
    result = hunts.HuntResult("classic", 5, violation=violation, round_seed=7)
    document = json.loads(report.encode_found(plan, result))
    path.write_text(json.dumps(document | changed))
    return str(path)


def test_a_report_is_read_as_a_plan_that_repeats_its_round(tmp_path):
    path = written_report(tmp_path / "x.json")

    assert report.read(path, (), 2.0) == HuntPlan("classic", seconds=2.0, seed=7, repeat=True)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 1 << 80}, "seed must be from 0"),
        ({"workers": 10**9}, "workers must be from 1"),
        ({"writers": -1}, "writers must be from 0"),
        ({"protocol": "bare"}, "nothing to hunt for"),
        ({"protocol": "all"}, "no protocol 'all'"),
        ({"layout_hash": 1}, "another version of spfemu"),
        ({"schema": "x"}, "its schema is 'x'"),
        ({"overrides": [{"file": "x.py", "sha256": "", "functions": []}]}, "--override x.py"),
    ],
)
def test_reports_that_somebody_has_changed_are_refused(tmp_path, changed, error):
    with pytest.raises(UsageError, match=error):
        report.read(written_report(tmp_path / "x.json", **changed), (), 1.0)


def test_an_override_that_is_not_there_is_named_by_a_replay(tmp_path):
    path = written_report(tmp_path / "x.json")
    with pytest.raises(UsageError, match=r"nosuch.py: cannot read the override: No such file"):
        report.read(path, ("nosuch.py",), 1.0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--report", "-"], "--report needs a file"),
        (["--report", "x", "--json", "./x"], "cannot write x twice"),
    ],
)
def test_outputs_that_contradict_each_other_are_refused(arguments, error):
    answer = CliRunner().invoke(cli, ["stress", *arguments])

    assert answer.exit_code == ExitCode.USAGE
    assert error in answer.stderr


def test_what_is_no_report_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for text in (b"", b"{", b'{"schema": 1}', b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(UsageError, match="is no report of spfemu stress"):
            report.read(str(path), (), 1.0)


def test_what_has_no_end_is_refused():
    with pytest.raises(UsageError, match="/dev/zero is larger than"):
        report.read("/dev/zero", (), 1.0)


def test_a_hunt_without_torn_copies_is_too_weak():
    result = hunts.HuntResult("spf", 1, operations=10, copies=5)

    assert "no copy of 5 was torn" in result.too_weak
    assert dataclasses.replace(result, torn=1).too_weak is None


@pytest.mark.parametrize("operations", [0, 10])
def test_a_hunt_that_found_something_is_not_too_weak(operations):
    found = Violation(Promise.DATA, "check", "It is wrong.")

    assert hunts.HuntResult("spf", 1, copies=5, operations=operations).too_weak
    result = hunts.HuntResult("spf", 1, copies=5, operations=operations, violation=found)

    assert result.too_weak is None


def test_bare_is_refused():
    with pytest.raises(UsageError, match="keeps no promise"):
        HuntPlan("bare")


@pytest.mark.parametrize("finished", [0, 1])
def test_a_worker_that_somebody_kills_has_broken_no_promise(monkeypatch, finished):
    """It ends the hunt, and what was finished is kept."""
    rounds = []

    def kill_one(workers, seconds):
        if workers not in rounds:
            rounds.append(workers)
        if len(rounds) <= finished:
            watch(workers, min(seconds, 0.1))
        else:
            os.kill(workers.threads[0][0], signal.SIGKILL)
            watch(workers, 60)

    watch = Workers.watch
    monkeypatch.setattr(Workers, "watch", kill_one)
    plan = HuntPlan("classic", seconds=60.0, hang_seconds=60.0)
    killed = r"worker 0 \(pid \d+\) was killed by SIGKILL"
    if not finished:
        with pytest.raises(WorkerKilledError, match=killed):
            hunt(plan)
        return

    result = hunt(plan)

    assert result.violation is None
    assert result.rounds == finished
    assert result.operations > 0
    assert result.partial.status == ExitCode.WORKER_DIED
    assert re.search(killed, result.partial.reason)


DIED = "worker 0 (pid 77) was killed by SIGKILL; it held no lock"


def ends_in(number, error):
    """Return a stand-in for a round that does 5 operations, and ends with `error` in one."""
    rounds = []

    def run_round(_plan, _prepared, _segments, _seed, result, _left, _progress):
        rounds.append(None)
        if len(rounds) > number:
            raise error
        result.operations += 5

    return run_round


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (WorkerKilledError(DIED), ExitCode.WORKER_DIED, f"spfemu: {DIED}\n"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "spfemu: interrupted\n"),
    ],
)
def test_finished_rounds_are_kept_when_something_ends_a_hunt(
    monkeypatch, tmp_path, error, status, line
):
    path = tmp_path / "result.json"
    monkeypatch.setattr(hunts, "prepare", prepare_nothing)
    monkeypatch.setattr(hunts, "run_round", ends_in(2, error))

    answer = CliRunner().invoke(cli, ["stress", "--seconds", "60", "--json", str(path)])

    assert answer.exit_code == status
    assert answer.stderr == line
    assert "spf: no promise broken in 10 operations, 2 rounds" in answer.stdout
    assert "partial: only finished rounds count" in answer.stdout
    document = msgspec.json.decode(path.read_bytes(), type=report.Results)
    partial = results.Partial(status=status, reason=line.removeprefix("spfemu: ").strip())
    assert document.partial == partial
    assert [r.partial for r in document.results] == [partial]


@pytest.mark.parametrize("where", ["round", "compiling"])
def test_finished_protocols_are_kept_when_something_ends_the_next(monkeypatch, tmp_path, where):
    path = tmp_path / "result.json"
    done = []

    def prepare(*_arguments):
        if done and where == "compiling":
            raise KeyboardInterrupt
        done.append(None)
        return prepare_nothing()

    def run_round(_plan, _prepared, _segments, _seed, result, _left, _progress):
        if len(done) > 1:
            raise WorkerKilledError(DIED)
        result.operations += 5

    monkeypatch.setattr(hunts, "prepare", prepare)
    monkeypatch.setattr(hunts, "run_round", run_round)
    arguments = ["stress", "--protocol", "all", "--seconds", "0.01", "--json", str(path)]

    answer = CliRunner().invoke(cli, arguments)

    partial = {
        "round": results.Partial(status=ExitCode.WORKER_DIED, reason=DIED),
        "compiling": results.Partial(status=ExitCode.INTERRUPTED, reason="interrupted"),
    }[where]
    assert answer.exit_code == partial.status
    assert answer.stderr == f"spfemu: {partial.reason}\n"
    document = msgspec.json.decode(path.read_bytes(), type=report.Results)
    assert document.partial == partial
    assert [(r.protocol, r.partial) for r in document.results] == [("classic", None)]


def test_a_promise_that_broke_outweighs_what_interrupts_the_stepping(monkeypatch, tmp_path):
    def run_round(_plan, _prepared, _segments, _seed, result, _left, _progress):
        result.operations += 5
        return Violation(Promise.DATA, "check", "It is wrong.")

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(hunts, "prepare", prepare_nothing)
    monkeypatch.setattr(hunts, "run_round", run_round)
    monkeypatch.setattr(stepping, "reproduce_apart", interrupted)
    found, path = tmp_path / "report.json", tmp_path / "result.json"

    answer = CliRunner().invoke(cli, ["stress", "--report", str(found), "--json", str(path)])

    assert answer.exit_code == ExitCode.VIOLATION
    [named] = json.loads(found.read_text())["overrides"]
    assert named["sha256"] == "as loaded"
    document = msgspec.json.decode(path.read_bytes(), type=report.Results)
    assert document.results[0].violation.promise == "DATA"
    assert document.partial.status == ExitCode.INTERRUPTED


def test_races_are_told_by_kind():
    events = Counter(SPF_ABORT_ODD=3, SPF_ABORT_PTE_MAP_LOCK_SEQ2=5, SPF_ABORT_ANON_VMA=7)
    result = hunts.HuntResult("spf", 1, events=events)

    assert result.races() == {"ODD": 3, "SEQ2": 5}
