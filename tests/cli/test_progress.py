# SPDX-License-Identifier: MIT
"""Progress is for terminals, on stderr, and starts no thread."""

import io
import sys
import threading

import pytest

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


def test_a_pipe_shows_nothing(capsys):
    with progress(quiet=False) as show:
        show("measuring", 0.1)
    assert capsys.readouterr().err == ""
