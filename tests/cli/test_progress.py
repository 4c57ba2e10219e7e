# SPDX-License-Identifier: MIT
"""Progress is on stderr, a bar on terminals and lines in logs, and starts no thread."""

import io
import sys
import threading
import time

import pytest

from spfemu.cli import progress as progress_module
from spfemu.cli.progress import progress


class Terminal(io.StringIO):
    """What thinks it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def make_terminal(monkeypatch):
    """Make stderr a terminal; within the test, because pytest changes stderr before it."""

    def make():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return make


def test_it_shows_what_is_being_done(make_terminal):
    terminal = make_terminal()
    with progress(quiet=False) as show:
        show("compiling page_fault1", None)
        show("spf, 2 workers, [1 of 3]", 0.5)
    assert "compiling page_fault1" in terminal.getvalue()
    assert "spf, 2 workers, [1 of 3]" in terminal.getvalue()


def test_it_starts_no_thread(make_terminal):
    make_terminal()
    before = threading.active_count()
    with progress(quiet=False) as show:
        show("measuring", 0.1)
        assert threading.active_count() == before


def test_quiet_shows_nothing(make_terminal):
    terminal = make_terminal()
    with progress(quiet=True) as show:
        show("measuring", 0.1)
    assert terminal.getvalue() == ""


def test_a_log_gets_a_line_after_a_while(capsys, monkeypatch):
    times = iter((0.0, 59.0, 60.0, 119.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    with progress(quiet=False) as show:
        for round_number in range(3):
            show(f"round {round_number}", 0.1)
    assert capsys.readouterr().err == "spfemu: round 1\n"


def test_quiet_keeps_a_log_empty(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "LOG_PERIOD", 0.0)
    with progress(quiet=True) as show:
        show("measuring", 0.1)
    assert capsys.readouterr().err == ""
