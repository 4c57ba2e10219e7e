# SPDX-License-Identifier: MIT
"""Command lines made of options, values and rubbish: a documented status, and never a traceback.

What would measure, replay or record is replaced by finished results or an error of its own.
"""

from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spfemu.cli.app import COMMANDS, cli
from spfemu.errors import ExitCode, InconclusiveError

STATUSES = {int(code) for code in ExitCode} - {ExitCode.INTERNAL}
VALUES = (
    *("1", "0", "-1", "2", "1e9", "1e999", "nan", "inf", "99999999999999999999", "0x2a", "", " "),
    *("4096", "16M", "1.5K", "9T", "1-8", "8-1", "1..64x2", "0-8:0", "1,2,", "200ms", "0.3", "-"),
    *("spf", "classic", "spf,classic", "bare", "native", "plain", "host", "emulator", "threads"),
    *("processes", "latch", "irq", "own", "all", "none", "once", "bash", "tcsh", "pft", "mixed"),
    *("page_fault1", "numa_remote", "fork1", "trace", "nothing", "\x1b", "\udcff", "é", "*", "%s"),
    *(".", "no/such/file", "good.trace", "rubbish", "override.py", "--", "--help", "-x", "x=y"),
)
RUBBISH = st.text(st.characters(exclude_characters="\0"), max_size=5)
"""What an argument may hold: the kernel ends it at a NUL."""


def options_of(name):
    """All options of a command, and its flags."""
    command = cli.get_command(click.Context(cli), name)
    return [o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")]


OPTIONS = {name: options_of(name) for name in COMMANDS}


@st.composite
def command_lines(draw):
    name = draw(st.sampled_from(COMMANDS))
    words = [name] if draw(st.integers(0, 9)) else [draw(RUBBISH)]
    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            option = draw(st.sampled_from([*OPTIONS[name], "--help"]) | RUBBISH)
            words.append(option if draw(st.booleans()) else f"{option}={draw(values)}")
        words.append(draw(values))
    return words


values = st.sampled_from(VALUES) | RUBBISH


@pytest.fixture
def nothing_runs(tmp_path, monkeypatch, scale_report, run_report):
    """An empty directory in which commands get as far as the work that they would begin."""
    from spfemu.cli import run
    from spfemu.fidelity import run as fidelity
    from spfemu.measure import compare
    from spfemu.replay import run as replay
    from spfemu.stress import hunt, matrix
    from spfemu.trace import record

    def stop(*_, **__):
        raise InconclusiveError("nothing runs here")

    monkeypatch.setattr(compare, "scale", lambda *_, **__: scale_report)
    monkeypatch.setattr(run, "_measure", lambda *_, **__: run_report)
    monkeypatch.setattr(fidelity, "run_fidelity", stop)
    monkeypatch.setattr(fidelity, "replay", stop)
    monkeypatch.setattr(replay, "replay", stop)
    monkeypatch.setattr(hunt, "hunt", stop)
    monkeypatch.setattr(matrix, "try_mutant", stop)
    monkeypatch.setattr(record, "record", stop)
    monkeypatch.chdir(tmp_path)
    Path("good.trace").write_text("1 brk(NULL) = 0x1000\n")
    Path("rubbish").write_bytes(bytes(range(256)))
    Path("override.py").write_text("import nothing_of_that_name\n")


def test_every_command_line_ends_as_documented(nothing_runs):
    seen = set()

    @settings(
        deadline=None,
        max_examples=400,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(command_lines())
    def invoke(words):
        answer = CliRunner().invoke(cli, words, prog_name="spfemu")
        ended = answer.exception
        assert ended is None or isinstance(ended, SystemExit), words
        assert answer.exit_code in STATUSES, words
        assert "Traceback" not in answer.output
        if answer.exit_code == ExitCode.USAGE:
            assert answer.stderr.strip().splitlines()[-1].startswith(("Error: ", "spfemu: ")), words
        seen.add(answer.exit_code)

    invoke()
    assert {ExitCode.OK, ExitCode.USAGE} <= seen


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(COMMANDS) | values, max_size=4), values)
def test_completion_takes_whatever_was_typed(words, begun):
    ShellComplete(cli, {}, "spfemu", "_SPFEMU_COMPLETE").get_completions(words, begun)
