# SPDX-License-Identifier: MIT
"""``spfemu fidelity``: what it says, writes and returns."""

import json

import pytest
from click.testing import CliRunner

from spfemu.cli.app import cli
from spfemu.cli.fidelity import PROGRAM_FILE, SCHEMA
from spfemu.errors import ExitCode
from spfemu.fidelity import run
from spfemu.fidelity.compare import Difference
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.program import Operation, Window
from spfemu.fidelity.run import FidelityResult, Found


@pytest.fixture
def fidelity(tmp_path, monkeypatch):
    """Run the command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, ["fidelity", *arguments])


OPERATIONS = [Operation(Kind.BRK, Window.HEAP, 4096)]
FOUND = Found(Difference(0, "result", "heap", "heap + 0x1000"), OPERATIONS, "brk();\n")


@pytest.fixture
def finished(monkeypatch):
    """Return a function that lets a run end with what is given."""

    def end_with(**fields):
        def run_fidelity(operations, seconds, seed, progress, *, protocol, overrides):
            return FidelityResult(
                seed=seed, protocol=protocol, kernel="6.18", version=0x612,
                known=("a: b",), operations=10, programs=1, seconds=0.5, **fields
            )  # fmt: skip

        monkeypatch.setattr(run, "run_fidelity", run_fidelity)

    return end_with


def test_a_real_run(fidelity):
    answer = fidelity("--operations", "500", "--seed", "42", "--protocol", "classic")
    assert answer.exit_code == ExitCode.OK
    lines = answer.stdout.splitlines()
    assert lines[0] == "seed 0x2a"
    assert lines[1].startswith("left out: commit limit:")
    assert lines[-1].startswith("no difference in 500 operations, ")
    assert lines[-1].endswith(", classic")


def test_a_difference_is_printed_and_written(fidelity, finished, tmp_path):
    finished(found=FOUND)
    answer = fidelity("-q")
    assert answer.exit_code == ExitCode.VIOLATION
    assert "a difference in 10 operations, 1 programs, 20 operations/s" in answer.stdout
    assert "brk();" in answer.stdout
    assert "left out" not in answer.stdout
    assert (tmp_path / PROGRAM_FILE).read_bytes() == FOUND.encode()


def test_a_written_program_is_replayed(fidelity, tmp_path):
    (tmp_path / "p").write_bytes(FOUND.encode())
    answer = fidelity("--replay", "p")
    assert answer.exit_code == ExitCode.OK
    assert answer.stdout == "no difference in 1 operations\n"


def test_a_replay_that_differs(fidelity, monkeypatch, tmp_path):
    (tmp_path / "p").write_bytes(FOUND.encode())
    monkeypatch.setattr(run, "replay", lambda operations, **how: FOUND)
    answer = fidelity("--replay", "p")
    assert answer.exit_code == ExitCode.VIOLATION
    assert answer.stdout == FOUND.listing


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, ExitCode.OK),
        ({"unrepeated": ["x"]}, ExitCode.INCONCLUSIVE),
        ({"partial": True}, ExitCode.INTERRUPTED),
        ({"partial": True, "found": FOUND}, ExitCode.VIOLATION),
    ],
)
def test_exit_codes(fields, code, fidelity, finished):
    finished(**fields)
    assert fidelity().exit_code == code


def test_json(fidelity, finished, tmp_path):
    finished(unrepeated=["x"])
    assert fidelity("--json", "out.json").exit_code == ExitCode.INCONCLUSIVE
    written = json.loads((tmp_path / "out.json").read_text())
    answer = fidelity("--json", "-")
    printed = json.loads(answer.stdout)
    assert written["schema"] == printed["schema"] == SCHEMA
    assert printed["operations"] == 10
    assert printed["unrepeated"] == ["x"]
    assert "no difference in 10 operations" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--replay", "p", "--seed", "1"), "--seed means nothing with --replay"),
        (("--replay", "nothing"), "cannot read nothing"),
        (("--operations", "0"), "operations must be more than 0"),
        (("--program", "no/where"), "there is no directory no"),
        (("--protocol", "spff"), "did you mean 'spf'"),
        (("--protocol", "bare"), "'bare' takes no notice of mappings"),
        (("--override", "nothing.py"), "nothing.py: cannot read the override"),
    ],
)
def test_bad_input(arguments, reason, fidelity):
    answer = fidelity(*arguments)
    assert answer.exit_code == ExitCode.USAGE
    assert reason in answer.stderr
