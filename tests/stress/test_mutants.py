# SPDX-License-Identifier: MIT
"""Mutants are what their files say, die of their schedules, and only they do.

With SPFEMU_ALL_MUTANTS=1 all of them; else some of each kind.
"""

import functools
import json
import os
import signal

import pytest
from click.testing import CliRunner

from spfemu.cli.app import cli
from spfemu.engines.source import KernelSourceError
from spfemu.engines.stepped import StepEngine
from spfemu.errors import UsageError, WorkerKilledError
from spfemu.measure.build import reachable
from spfemu.stress import matrix
from spfemu.stress.isolation import DiedError, in_child
from spfemu.stress.matrix import Kill, by_schedule, try_mutant
from spfemu.stress.mutant import Mutant, choose, load, mutants
from spfemu.stress.schedules import schedules
from spfemu.stress.schedules.process import program
from spfemu.stress.schedules.schedule import BrokenError, Schedule, expect, play

ALL = bool(os.environ.get("SPFEMU_ALL_MUTANTS"))
FAST = (
    *("no_seq2", "mprotect_without_flush", "vma_lock_not_rechecked", "readers_not_waited_for"),
    *("vma_sequence_not_checked", "fork_takes_no_reference", "v11_sequence_not_checked"),
)
"""Mutants that die in a moment, of several kinds."""
SECONDS = 20.0
HEALTHY_SECONDS = 0.5
HARMLESS = '''
"""The commit gate, as it is.

Nothing.

Nothing happens.
"""
from spfemu.kernel import around, proceed

PROTOCOL = "spf"
PROMISE = "DATA"
SCHEDULE = "write_in_the_gate_beside_munmap"

@around
def pte_map_lock(cpu: int, vmf: int) -> int:
    """Do the same."""
    return proceed(cpu, vmf)
'''


@pytest.fixture
def harmless(tmp_path):
    """Path of a mutant that breaks nothing."""
    path = tmp_path / "harmless.py"
    path.write_text(HARMLESS)
    return path


@functools.cache
def healthy(protocol, config):
    return StepEngine(program(protocol, **dict(config)))


def roles():
    """Each schedule with a protocol and build options under which a mutant plays it."""
    found = {}
    for mutant in mutants().values():
        if mutant.schedule is not None:
            config = {**schedules()[mutant.schedule].config, **mutant.config}
            found[mutant.schedule, mutant.protocol, tuple(sorted(config.items()))] = None
    if not ALL:
        found = {key: None for key in found if key[1] == "spf" and not key[2]}
    return sorted(found)


def test_there_are_enough():
    assert len(mutants()) >= 40
    assert {mutant.name for mutant in mutants().values() if mutant.schedule} >= set(FAST)


@pytest.mark.parametrize("name", mutants())
def test_a_file_says_what_it_is(name):
    mutant = mutants()[name]
    assert len(mutant.what.split("\n")) == 1
    for text in (mutant.what, mutant.origin, mutant.effect):
        assert text.endswith(".")
    # without a schedule either hunts find it or nothing does, which the file says
    if mutant.schedule is not None:
        assert mutant.schedule in schedules()


@pytest.mark.parametrize("name", mutants() if ALL else FAST)
def test_a_mutant_replaces_what_its_protocol_reaches(name):
    mutant = mutants()[name]
    linked = program(mutant.protocol, (mutant.path,), **mutant.config)
    calls = [name for name in linked.functions if name.startswith("thread_")]
    assert linked.overridden
    assert set(linked.overridden) & set(reachable(linked, calls).functions)


@pytest.mark.parametrize(
    "name", [m.name for m in mutants().values() if m.schedule] if ALL else FAST
)
def test_a_mutant_dies_of_its_schedule(name):
    mutant = mutants()[name]
    kill = by_schedule(mutant, SECONDS)
    assert (kill is None) == (mutant.survives is not None)


@pytest.mark.parametrize(("name", "protocol", "config"), roles())
def test_the_kernel_survives_every_schedule(name, protocol, config):
    found, seed = play(schedules()[name], healthy(protocol, config), HEALTHY_SECONDS)
    assert found is None, f"seed {seed}"


def test_what_survives_is_reported(harmless, capsys):
    detectors = {"schedule": lambda mutant, seconds: None}
    row = try_mutant(*choose([str(harmless)]), 1.0, detectors)
    assert row.unexpected
    assert not row.killed


def test_a_harmless_override_survives_and_fails_the_command(
    harmless, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(matrix, "DETECTORS", {"schedule": by_schedule})
    path = tmp_path / "kills.json"
    arguments = ["mutants", str(harmless), "no_seq2", "--seconds", "1", "--json", str(path)]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 1
    output = capsys.readouterr().out
    assert "1 of 2 mutants are caught, 1 by schedule" in output
    assert "it should not survive" in output
    document = json.loads(path.read_text())
    first, second = document["mutants"]
    assert first["kills"] == {"schedule": None}
    assert second["kills"]["schedule"]["check"].startswith(
        "write_in_the_gate_beside_munmap: invariant"
    )


def test_a_mutant_may_survive_if_it_says_so(harmless):
    harmless.write_text(HARMLESS + '\nSURVIVES = "it is harmless"\n')
    row = try_mutant(load(harmless), 1.0, {"schedule": lambda mutant, seconds: None})
    assert not row.unexpected


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("Nothing.\n\n", "", "docstring of 3 paragraphs"),
        ('PROMISE = "DATA"', "", "says its PROMISE"),
        ('"DATA"', '"DATE"', "no promise 'DATE'; did you mean 'DATA'"),
        ('"spf"', '"spv"', "no protocol 'spv'"),
        ('"spf"', "str()", "PROTOCOL must be a plain value"),
    ],
)
def test_files_that_are_no_mutants_are_refused(harmless, old, new, error):
    harmless.write_text(HARMLESS.replace(old, new, 1))
    with pytest.raises((KernelSourceError, UsageError), match=error):
        load(harmless)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="no mutant 'no_seq3'; did you mean 'no_seq2'"):
        choose(["no_seq3"])
    with pytest.raises(UsageError, match=r"no mutant 'x' \('spfemu list mutants' names all\)"):
        choose(["x"])


def test_an_unknown_schedule_is_refused_with_the_nearest(harmless):
    harmless.write_text(HARMLESS.replace("munmap", "munmop"))
    with pytest.raises(UsageError, match=r"no schedule '.*munmop'; did you mean '.*munmap'"):
        choose([str(harmless)])


def test_a_mutant_that_only_hunts_compile_is_refused_for_its_mistakes(harmless):
    text = HARMLESS.replace("SCHEDULE", "ELSEWHERE").replace("return proceed", "return nowhere")
    harmless.write_text(text)
    with pytest.raises(KernelSourceError, match="never calls proceed"):
        try_mutant(load(harmless), 1.0)


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (WorkerKilledError("worker 0 was killed"), 5)],
)
def test_mutants_that_were_tried_are_kept_when_something_ends_the_command(
    harmless, monkeypatch, tmp_path, error, status
):
    tried = []

    def detect(mutant, _seconds):
        if tried:
            raise error
        tried.append(mutant)
        return Kill("a check", 0.5)

    monkeypatch.setattr(matrix, "DETECTORS", {"schedule": detect})
    path = tmp_path / "kills.json"

    answer = CliRunner().invoke(cli, ["mutants", "no_seq2", str(harmless), "--json", str(path)])

    assert answer.exit_code == status
    reason = str(error) or "interrupted"
    assert answer.stderr == f"spfemu: {reason}; 1 mutants were tried\n"
    document = json.loads(path.read_text())
    assert [one["name"] for one in document["mutants"]] == ["no_seq2"]
    assert document["partial"] == {"status": status, "reason": reason}


def test_work_in_a_child_comes_back_or_says_why():
    assert in_child(lambda: 7, 10) == 7
    with pytest.raises(ZeroDivisionError):
        in_child(lambda: 1 // 0, 10)
    with pytest.raises(DiedError, match="dies by SIGKILL"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), 10)
    with pytest.raises(DiedError, match="does not end"):
        in_child(lambda: os.read(os.pipe()[0], 1), 0.1)


def test_a_kernel_that_crashes_is_caught(monkeypatch):
    def crash(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(matrix, "play", crash)
    kill = by_schedule(mutants()["no_seq2"], 1.0)
    assert isinstance(kill, Kill)
    assert "crash: the kernel dies by SIGKILL" in kill.check


def test_expectations():
    expect("a value", 7, 7, 8)
    with pytest.raises(BrokenError, match="a value is 7, not 8 or 9"):
        expect("a value", 7, 8, 9)


def test_every_schedule_says_what_it_plays():
    assert all(isinstance(one, Schedule) and one.description for one in schedules().values())
    assert all(isinstance(mutant, Mutant) for mutant in mutants().values())
