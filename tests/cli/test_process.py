# SPDX-License-Identifier: MIT
"""The command line as a process: what it imports, real runs, signals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import spfemu
from spfemu import results
from spfemu.errors import ExitCode

CHECKOUT = Path(spfemu.__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
HEAVY = ("numpy", "llvmlite", "matplotlib", "scipy", "psutil", "multiprocess", "msgspec", "rich")
TIMEOUT = 120


def run_spfemu(*arguments, **how):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "spfemu", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
        check=False,
        **how,
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["scale", "--help"], ["--version"], ["completion", "bash"]],
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from spfemu.cli import main\n"
        f"sys.argv = ['spfemu', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
        env=ENVIRONMENT,
    )
    assert answer.stderr.split() == []


def test_a_real_run_with_json_on_stdout(tmp_path):
    answer = run_spfemu(
        "run", "pft", "--seconds", "0.05", "--repeats", "1", "--size", "64K", "--seed", "7",
        "--json", "-", cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == ExitCode.OK, answer.stderr
    document = json.loads(answer.stdout)
    jsonschema.validate(document, results.schema())
    assert document["command"][:3] == ["spfemu", "run", "pft"]
    assert document["seed"] == document["results"][0]["seed"] == 7
    assert document["results"][0]["faults_per_second"]["median"] > 0
    assert answer.stderr.startswith("seed 0x7\n")


def test_a_real_scale_writes_its_files(tmp_path):
    answer = run_spfemu(
        "scale", "pft", "--workers", "1", "--seconds", "0.05", "--repeats", "1", "--size", "64K",
        "--csv", "out.csv", cwd=tmp_path,
    )  # fmt: skip
    # one short round on a busy machine may well be inconclusive
    assert answer.returncode in (ExitCode.OK, ExitCode.INCONCLUSIVE), answer.stderr
    report = results.decode((tmp_path / "spfemu-pft.json").read_bytes())
    assert [(r.target, r.protocol) for r in report.results] == [
        ("emulator", "classic"),
        ("emulator", "spf"),
        ("host", None),
    ]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["out-classic.csv", "out-host.csv", "out-spf.csv", "spfemu-pft.json",
                     "spfemu-pft.png", "spfemu-pft.svg"]  # fmt: skip


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_ctrl_c_and_sigterm_keep_finished_repeats_and_say_so(tmp_path, number):
    path = tmp_path / "partial.json"
    code = INTERRUPT_AFTER_TWO.replace("SIGINT", number)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "pft", "--seconds", "0.05",
         "--repeats", "1000", "--size", "64K", "--json", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == ExitCode.INTERRUPTED, errors
    assert "partial: interrupted" in output
    report = results.decode(path.read_bytes())
    assert report.partial == results.Partial(status=ExitCode.INTERRUPTED, reason="interrupted")
    assert 1 <= report.results[0].repeats < 1000


def test_sigterm_keeps_the_finished_rounds_of_a_hunt(tmp_path):
    path = tmp_path / "partial.json"
    answer = subprocess.run(
        [sys.executable, "-c", HUNT_ENDS_AFTER_TWO, "stress", "--seconds", "60",
         "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert answer.returncode == ExitCode.INTERRUPTED, answer.stderr
    assert answer.stderr == "spfemu: interrupted\n"
    document = json.loads(path.read_bytes())
    assert document["partial"] == {"status": ExitCode.INTERRUPTED, "reason": "interrupted"}
    assert document["results"][0]["rounds"] == 2


HUNT_ENDS_AFTER_TWO = """
import os, signal
from types import SimpleNamespace
from spfemu.cli import main
from spfemu.engines.source import Program
from spfemu.stress import hunt

def run_round(plan, prepared, segments, seed, result, left, progress):
    if result.rounds == 2:
        os.kill(os.getpid(), signal.SIGTERM)

hunt.prepare = lambda plan, progress: SimpleNamespace(program=Program({}, {}))
hunt.run_round = run_round
main()
"""


INTERRUPT_AFTER_TWO = """
import os, signal
from spfemu.cli import main
from spfemu.measure import run

take, taken = run.take_sample, []

def sample(*arguments, **how):
    if len(taken) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    taken.append(take(*arguments, **how))
    return taken[-1]

run.take_sample = sample
run.moved = lambda probes: False  # a sample that is repeated is not finished
main()
"""


def test_ctrl_c_before_anything_is_finished():
    code = INTERRUPT_AFTER_TWO.replace("== 2", "== 0")
    answer = subprocess.run(
        [sys.executable, "-c", code, "run", "pft", "--size", "64K"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=ENVIRONMENT,
    )
    assert answer.returncode == ExitCode.INTERRUPTED
    assert answer.stderr == "spfemu: interrupted, nothing was finished\n"


@pytest.mark.parametrize("module", ["click", "spfemu.cli.app", "spfemu.cli.run"])
def test_ctrl_c_while_modules_are_imported(module):
    code = f"""
import builtins, os, signal
from spfemu.cli import main

real = builtins.__import__

def importing(name, *arguments):
    if name == "{module}":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *arguments)

builtins.__import__ = importing
import importlib
importlib.import_module = lambda name: importing(name, None, None, ["command"])
main()
"""
    answer = subprocess.run(
        [sys.executable, "-c", code, "run", "--help"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=ENVIRONMENT,
    )
    assert answer.stderr == "spfemu: interrupted, nothing was finished\n"
    assert answer.returncode == ExitCode.INTERRUPTED


def test_a_closed_pipe_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "spfemu", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(TIMEOUT)
    assert errors == ""
    assert process.returncode in (ExitCode.OK, ExitCode.ENVIRONMENT)


def test_a_full_disk_is_no_violation():
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run(
            [sys.executable, "-m", "spfemu", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env=ENVIRONMENT,
        )
    assert answer.returncode == ExitCode.ENVIRONMENT
    assert answer.stderr == "spfemu: [Errno 28] No space left on device\n"


def test_a_bad_override_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from spfemu.kernel import kernel\n\n\n@kernel\ndef find_vma(cpu):\n    return 0\n"
    )
    answer = run_spfemu("run", "pft", "--override", str(path), cwd=tmp_path)
    assert answer.returncode == ExitCode.USAGE
    line = answer.stderr.strip().splitlines()[-1]
    assert line.startswith(f"spfemu: {path}:5: 'find_vma' must take (")
