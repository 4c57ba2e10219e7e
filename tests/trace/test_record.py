# SPDX-License-Identifier: MIT
"""Recording real programs."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from spfemu.cli.app import cli
from spfemu.errors import ExitCode
from spfemu.trace import record
from spfemu.trace.strace import Exec, Exit, Maps, Reader


def usable():
    """Tell whether strace is there and may trace."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return tried.returncode == 0


needs_strace = pytest.mark.skipif(not usable(), reason="strace is not there, or may not trace")


def events_of(data):
    reader = Reader(io.BytesIO(data), "recording")
    events = list(reader)
    assert reader.problems.texts() == []
    return events


@needs_strace
def test_a_recording_has_calls_and_maps_of_all_processes():
    out = io.BytesIO()
    recorded = record.record(["/bin/sh", "-c", "/bin/sleep 0; exit 3"], out)

    events = events_of(out.getvalue())
    shell = events[0].pid
    kinds = [(type(e), e.pid == shell) for e in events]
    assert isinstance(events[0], Exec)  # the shell that starts the command is left out
    assert {pid for kind, pid in kinds if kind is Exec} == {True, False}
    assert (Exit, True) in kinds
    assert (Exit, False) in kinds
    # a machine that is very busy may miss some
    maps = [e for e in events if isinstance(e, Maps)]
    assert len(maps) == recorded.maps
    assert recorded.maps + recorded.missed == 4
    assert recorded.status == 3
    for found in maps:
        assert any("[stack]" in m.name for m in found.mappings)


@needs_strace
def test_ctrl_c_keeps_what_was_recorded(tmp_path):
    path = tmp_path / "t.trace"
    command = [sys.executable, "-m", "spfemu", "record", "-o", path, "--", "sleep", "60"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    while not path.exists() or b"brk" not in path.read_bytes():
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()

    assert process.returncode == ExitCode.INTERRUPTED
    assert "the program was killed by SIGINT" in said
    assert any(isinstance(e, Maps) for e in events_of(path.read_bytes()))


def test_without_strace(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = CliRunner().invoke(cli, ["record", "true"])

    assert answer.exit_code == ExitCode.ENVIRONMENT
    assert "needs strace" in answer.stderr
    assert "apt-get install strace" in answer.stderr


@needs_strace
def test_a_program_that_is_not_there():
    answer = CliRunner().invoke(cli, ["record", "--", "no-such-program"])

    assert answer.exit_code == ExitCode.USAGE
    assert answer.stderr == "spfemu: there is no program 'no-such-program' to record\n"


def test_no_program():
    answer = CliRunner().invoke(cli, ["record"])

    assert answer.exit_code == ExitCode.USAGE
    assert "say which program" in answer.stderr


@needs_strace
def test_a_file_that_cannot_be_written(tmp_path):
    answer = CliRunner().invoke(cli, ["record", "-o", str(tmp_path), "--", "true"])

    assert answer.exit_code == ExitCode.USAGE
    assert "it is a directory" in answer.stderr


def test_a_map_that_is_read_too_late_is_left_out(monkeypatch):
    # strace's output, split where a read may end
    me = os.getpid()
    late = f"{me} 1.5 exit_group(0) = ?\n"
    now = f"{me} {time.time() + 60:.6f} "
    parts = [
        f"{now}execve(a) = 0\n{now}brk(NULL) = 0x1000\n{now}execve(a) = 0 (DELAYED)\n{now}exit_gr",
        "oup(0",
        f" <unfinished ...>\n{late}",
    ]
    reading, writing = os.pipe()
    out = io.BytesIO()
    recorder = record._Recorder(out, reading)
    chunks = iter([p.encode() for p in parts] + [b""])
    monkeypatch.setattr(record.os, "read", lambda _fd, _count: next(chunks))
    recorder.run()
    os.close(reading)
    os.close(writing)

    text = out.getvalue().decode()
    assert text.count(f"# maps {me} initial\n") == 1
    assert text.count(f"# maps {me} final\n") == 1
    assert text.index("final") < text.index("exit_group")
    assert "brk" not in text
    assert (recorder.result.maps, recorder.result.missed) == (2, 1)
