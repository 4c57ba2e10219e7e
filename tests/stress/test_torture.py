# SPDX-License-Identifier: MIT
"""Signals to the processes of a run: a quick torture, and that it would notice."""

import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spfemu.errors import ExitCode
from spfemu.stress import torture
from spfemu.stress.torture import Trial, Verdict

TRIALS = 12


def test_commands_end_as_promised_whatever_gets_a_signal():
    seed = secrets.randbits(32)
    for verdict in torture.torture(TRIALS, seed):
        assert not verdict.faults, torture.failure(verdict)


def test_a_seed_makes_the_same_trial():
    assert torture.make_trial(7) == torture.make_trial(7)
    kinds = {(t.victim, t.number) for t in map(torture.make_trial, range(200))}
    assert len(kinds) == 8


KILLED = Trial(1, ("run", "pft"), "child", signal.SIGKILL, 0.1, with_children=True, pause=None)
INTERRUPTED = Trial(1, ("run",), "parent", signal.SIGINT, 0.1, with_children=True, pause=None)
DIED = "spfemu: worker 0 (pid 77) was killed by SIGKILL; it held no lock\n"


@pytest.mark.parametrize(
    ("trial", "status", "errors", "faults"),
    [
        (KILLED, ExitCode.WORKER_DIED, DIED, []),
        (
            KILLED,
            ExitCode.WORKER_DIED,
            DIED.replace("77", "78"),
            ["worker 0 (pid 77) is not named"],
        ),
        (KILLED, ExitCode.OK, "", ["there is no report"]),
        (KILLED, ExitCode.VIOLATION, "", ["it ended with status 1"]),
        (
            KILLED,
            ExitCode.INTERNAL,
            "Traceback",
            ["it ended with status 70", "there is a traceback"],
        ),
        (INTERRUPTED, ExitCode.INTERRUPTED, "interrupted", []),
        (INTERRUPTED, ExitCode.INTERRUPTED, "", ["it is not said that it was interrupted"]),
        (INTERRUPTED, -signal.SIGKILL, "", ["it ended with status -9"]),
    ],
)
def test_what_is_not_as_promised_is_noticed(tmp_path, trial, status, errors, faults):
    verdict = Verdict(trial, status, "worker 0 (pid 77)", errors=errors)
    assert torture._judge(verdict, "", tmp_path) == faults


def test_a_process_that_is_left_is_noticed_and_ended():
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(100)"],
        stdout=subprocess.PIPE,
        text=True,
        env={torture.MARK: "mine"},
    )
    process.stdout.read(1)
    name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    assert torture.marked("mine") == [process.pid]
    assert torture._leftovers("mine", process) == [f"process {process.pid} ({name}) is left"]
    assert process.returncode == -signal.SIGKILL
