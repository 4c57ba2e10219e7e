# SPDX-License-Identifier: MIT
"""The scripts that install the project: every way to fail is one clear line and status 3."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spfemu.errors import ExitCode

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT = 120

pytestmark = pytest.mark.skipif(
    not (CHECKOUT / "scripts" / "venv.bash").exists(), reason="not run from a checkout"
)


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the scripts look at, in a directory with a space in its name."""
    root = tmp_path / "check out"
    shutil.copytree(CHECKOUT / "scripts", root / "scripts")
    shutil.copytree(CHECKOUT / "native_shims", root / "native_shims")
    for name in ("setup.cfg", "setup.py", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, root / name)
    return root


def environment(**changed):
    """No index and no wheels: nothing can be downloaded."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "SPFEMU_", "CC"))}
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "SPFEMU_PYTHON": sys.executable}
    return {**kept, **offline, **changed}


def start(checkout, *arguments, script="spfemu", **changed):
    return subprocess.run(
        [checkout / "scripts" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
        env=environment(**changed),
        check=False,
    )


def refused(answer, *words):
    """Tell whether the last line is the reason, with these words."""
    assert answer.returncode == ExitCode.ENVIRONMENT
    line = answer.stderr.strip().splitlines()[-1]
    assert line.startswith("spfemu: ")
    for word in words:
        assert word in line


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def install(checkout, extra="base"):
    """Make what looks like a finished installation; its command prints its arguments."""
    fingerprint = subprocess.run(
        ["bash", "-c", "source scripts/venv.bash; fingerprint"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    ).stdout.split()[0]
    venv = checkout / ".venv"
    executable(venv / "bin/spfemu", '#!/bin/sh\necho "ran <$1> <$2>"\n')
    executable(venv / "bin/python", '#!/bin/sh\n[ "$1" = -m ] && echo "$2 in $PWD" || exit 0\n')
    (venv / ".made-by-spfemu").touch()
    (venv / ".spfemu-stamp").write_text(f"{extra} {fingerprint}\n")


def test_an_old_python_is_refused(checkout, tmp_path):
    old = executable(
        tmp_path / "old", '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 || exit 1\n'
    )
    refused(start(checkout, SPFEMU_PYTHON=str(old)), "3.11 or newer", "found Python 3.9.2")
    assert not (checkout / ".venv").exists()


def test_no_python_is_refused(checkout):
    refused(start(checkout, SPFEMU_PYTHON="/absent"), "found none", "SPFEMU_PYTHON")


def test_no_compiler_is_refused(checkout):
    refused(start(checkout, CC="/absent/cc"), "C compiler", "apt install gcc")
    assert not (checkout / ".venv").exists()


def test_a_venv_of_somebody_else_is_left_alone(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "theirs").touch()
    refused(start(checkout), "was not made by this script", "SPFEMU_VENV")
    assert (checkout / ".venv" / "theirs").exists()


def test_a_place_that_cannot_be_written_is_refused(checkout):
    refused(start(checkout, SPFEMU_VENV="/proc/none"), "cannot write /proc/none")


def test_no_network_is_refused_and_what_is_half_made_is_made_again(checkout):
    left = checkout / ".venv" / "left-by-an-interrupted-start"
    left.parent.mkdir()
    left.touch()
    (checkout / ".venv" / ".made-by-spfemu").touch()
    answer = start(checkout)
    refused(answer, "cannot download", "install.log")
    assert "making a venv" in answer.stderr
    assert not left.exists()
    assert not (checkout / ".venv" / ".spfemu-stamp").exists()


def test_once_installed_it_only_runs_the_command(checkout):
    install(checkout)
    answer = start(checkout, "a b", "c")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "ran <a b> <c>\n", "")


def test_tests_need_more_than_the_command_but_serve_it_too(checkout):
    install(checkout, "dev")
    assert start(checkout, "x").stdout == "ran <x> <>\n"
    assert start(checkout, script="test").stdout == f"pytest in {checkout}\n"
    install(checkout, "base")
    assert "installing again" in start(checkout, script="test").stderr


@pytest.mark.parametrize(
    "name", ["setup.cfg", "pyproject.toml", "setup.py", "native_shims/futex.c"]
)
def test_a_changed_build_file_installs_again(checkout, name):
    install(checkout)
    with (checkout / name).open("a") as file:
        file.write("\n")
    assert "the project's build files changed" in start(checkout).stderr


def test_a_second_start_waits_for_the_first(checkout):
    handle = os.open(checkout, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    second = subprocess.Popen(
        [checkout / "scripts" / "spfemu", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert "waiting for another start" in second.stderr.readline()
    install(checkout)
    os.close(handle)
    output, errors = second.communicate(timeout=TIMEOUT)
    assert (second.returncode, output, errors) == (0, "ran <x> <>\n", "")


def test_every_script_is_proper_bash():
    for path in [*(CHECKOUT / "scripts").iterdir(), CHECKOUT / ".ci" / "run"]:
        subprocess.run(["bash", "-n", path], check=True)
        assert path.suffix == ".bash" or os.access(path, os.X_OK)
