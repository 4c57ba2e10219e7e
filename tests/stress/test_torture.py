# SPDX-License-Identifier: MIT
"""Signals to the processes of a run: a quick torture, and that it would notice."""

import dataclasses
import os
import secrets
import signal
from collections import Counter

import pytest

from spfemu.errors import ExitCode
from spfemu.segment import Geometry, Segment
from spfemu.stress import session as sessions
from spfemu.stress import torture
from spfemu.stress.session import ENDING, GONE, KERNEL, STARTING, Session
from spfemu.stress.torture import Hit, Trial, Verdict

TRIALS = 6


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_frames=64))
    yield made
    made.close()


def test_commands_end_as_promised_whatever_gets_a_signal_in_the_kernel(segment):
    """With a segment of this process's own, which is not to be taken for a command's."""
    seed = secrets.randbits(32)
    phases = Counter()
    for verdict in torture.torture(TRIALS, seed):
        assert not verdict.faults, torture.failure(verdict)
        phases[verdict.hit.phase if verdict.hit else GONE] += 1
    assert phases[KERNEL], phases


def test_a_seed_makes_the_same_trial():
    assert torture.make_trial(7) == torture.make_trial(7)
    trials = [torture.make_trial(seed) for seed in range(400)]
    assert len({(t.victim, t.number) for t in trials}) == 8
    assert {t.phase for t in trials} == set(torture.PHASES) - {GONE}


KILLED = Trial(1, ("run", "pft"), "child", signal.SIGKILL)
PAUSED = Trial(1, ("run", "pft"), "child", signal.SIGSTOP, pause=0.1)
INTERRUPTED = Trial(1, ("run",), "parent", signal.SIGINT)
WORKER = Hit(77, "worker 0", KERNEL)
AT_THE_END = dataclasses.replace(WORKER, phase=ENDING)
AT_THE_START = dataclasses.replace(WORKER, phase=STARTING)
DIED = "spfemu: worker 0 (pid 77) was killed by SIGKILL; it held no lock\n"


@pytest.mark.parametrize(
    ("trial", "hit", "status", "errors", "faults"),
    [
        (KILLED, WORKER, ExitCode.WORKER_DIED, DIED, []),
        (
            *(KILLED, WORKER, ExitCode.WORKER_DIED, DIED.replace("77", "78")),
            ["worker 0 (pid 77) is not named"],
        ),
        (
            *(KILLED, WORKER, ExitCode.OK, ""),
            ["it ended with status 0", "there is no report"],
        ),
        (KILLED, AT_THE_END, ExitCode.OK, "", ["there is no report"]),
        (KILLED, WORKER, ExitCode.VIOLATION, "", ["it ended with status 1"]),
        (
            *(KILLED, WORKER, ExitCode.INTERNAL, "Traceback"),
            ["it ended with status 70", "there is a traceback"],
        ),
        (
            *(PAUSED, WORKER, ExitCode.WORKER_DIED, DIED),
            ["it ended with status 5", "it is not said that it was a signal stopped"],
        ),
        (INTERRUPTED, WORKER, ExitCode.INTERRUPTED, "interrupted", []),
        (
            *(INTERRUPTED, WORKER, ExitCode.INTERRUPTED, ""),
            ["it is not said that it was interrupted"],
        ),
        (INTERRUPTED, WORKER, -signal.SIGKILL, "", ["it ended with status -9"]),
        (INTERRUPTED, WORKER, -signal.SIGINT, "", ["it ended with status -2"]),
        (INTERRUPTED, AT_THE_END, -signal.SIGINT, "", []),
        (INTERRUPTED, AT_THE_START, 1, f"{torture.NO_PYTHON}import_site: Traceback", []),
        (
            *(INTERRUPTED, WORKER, 1, f"{torture.NO_PYTHON}import_site: Traceback"),
            ["it ended with status 1", "there is a traceback"],
        ),
    ],
)  # fmt: skip
def test_what_is_not_as_promised_is_noticed(tmp_path, trial, hit, status, errors, faults):
    verdict = Verdict(trial, status, hit, errors=errors)
    assert torture._judge(verdict, "", tmp_path) == faults


@pytest.mark.parametrize(
    ("status", "output", "faults"),
    [
        (ExitCode.WORKER_DIED, "partial: only finished rounds count", []),
        (ExitCode.WORKER_DIED, "", ["it is not said that the result is partial"]),
    ],
)
def test_a_report_that_hides_what_happened_is_noticed(tmp_path, status, output, faults):
    hunt = dataclasses.replace(KILLED, arguments=("stress",))
    verdict = Verdict(hunt, status, WORKER, errors=DIED)
    report = tmp_path / torture.REPORT
    report.write_text(REPORT % '{"status": 5, "reason": "killed"}')
    assert torture._judge(verdict, output, tmp_path) == faults
    report.write_text(REPORT % "null")
    assert torture._judge(verdict, output, tmp_path) == [
        f"the report says None, the status is {status}"
    ]


REPORT = '{"schema": "spfemu-stress-2", "results": [], "partial": %s}'


def sleeper(tmp_path, monkeypatch):
    """Start something that takes long in place of a command, and wait until it sleeps."""
    started = tmp_path / "started"
    code = "import pathlib, time; pathlib.Path('started').touch(); time.sleep(1000)"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    session = Session(("list",), tmp_path, None)
    while not started.exists():
        assert not session.wait(0.01)
    return session


def test_a_process_that_is_left_is_noticed_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(torture, "GONE_SECONDS", 0.0)
    session = sleeper(tmp_path, monkeypatch)
    assert session.members() == [session.pid]
    assert session.phase() == STARTING
    name = sessions.name_of(session.pid)
    assert torture._leftovers(session) == [f"process {session.pid} ({name}) is left"]
    assert session.status == -signal.SIGKILL
    assert session.phase() == GONE


def test_a_command_that_hangs_is_noticed_and_says_where(tmp_path, monkeypatch):
    session = sleeper(tmp_path, monkeypatch)
    where = session.where()
    assert len(where) == 1
    assert f"process {session.pid}" in where[0]
    session.wait(60)
    assert "sitecustomize.py" in session.errors.read_text()
    session.close()
    assert session.members() == []


def test_the_phases_of_a_command_are_told_from_its_segment(monkeypatch, tmp_path):
    fields = {"gate": 0, "stop": 0}

    def header(*_arguments):
        system = sessions.np.zeros(1, sessions.SYSTEM.dtype)
        for name, value in fields.items():
            system[name] = value
        return system.tobytes()

    session = sleeper(tmp_path, monkeypatch)
    try:
        session._segment = os.open("/dev/null", os.O_RDONLY)
        monkeypatch.setattr(sessions.os, "pread", header)
        assert session.phase() == sessions.SET_UP
        fields["gate"] = 1
        assert session.phase() == KERNEL
        fields["stop"] = 1
        assert session.phase() == ENDING
    finally:
        session.close()
