# SPDX-License-Identifier: MIT
"""Where results go: tables and notes to the terminal, files beside them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spfemu.errors import ExitCode, ResourceError, UsageError

if TYPE_CHECKING:
    from spfemu.results import Report

STDOUT = "-"
PATH = click.Path(allow_dash=True)
"""A file to write; `check_writable` looks at it."""


def command_line() -> list[str]:
    """Return the command as it was given, for the report."""
    return ["spfemu", *sys.argv[1:]]


def check_writable(paths: Iterable[str | Path | None]) -> None:
    """Raise UsageError unless every path can be written: before the run, not after.

    Nothing is created or changed.
    """
    files: set[Path] = set()
    for given in paths:
        if given is None or str(given) == STDOUT:
            continue
        path = Path(given)
        if path.is_file() or not path.exists():
            if path.resolve() in files:
                raise UsageError(f"cannot write {path} twice: name a file for each output")
            files.add(path.resolve())
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a directory; name a file")
        if path.exists():
            if not os.access(path, os.W_OK):
                raise UsageError(f"cannot write {path}: no permission; name another file")
            continue
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {path}: there is no directory {path.parent}")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise UsageError(
                f"cannot write {path}: no permission in {path.parent.resolve()}; "
                "name a file elsewhere"
            )


def write_file(path: str | Path, content: bytes) -> None:
    """Put `content` into a file, whole or not at all; raises ResourceError.

    What is no regular file (a pipe, /dev/null) is written as it is.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        _replace(path, content)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.resolve().parent, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path.resolve())
        except BaseException:
            temporary.unlink()
            raise


def write_json(path: str, report: Report) -> None:
    """Write the report to a file, or to stdout for ``-``."""
    from spfemu.results import encode

    if path == STDOUT:
        click.echo(encode(report), nl=False)
    else:
        write_file(path, encode(report))


def write_bytes(path: str, content: bytes) -> None:
    """Write a result to a file, or to stdout for ``-``."""
    if path == STDOUT:
        click.echo(content, nl=False)
    else:
        write_file(path, content)


def problems(texts: Iterable[str]) -> None:
    """Say what of the input could not be used; --quiet does not silence that."""
    for text in texts:
        click.echo(text, err=True)


def exit_code(report: Report) -> ExitCode:
    """Return what the command ends with: a failed check outweighs all else."""
    if any(result.violations for result in report.results):
        return ExitCode.VIOLATION
    if report.partial is not None:
        return ExitCode(report.partial.status)
    if report.inconclusive:
        return ExitCode.INCONCLUSIVE
    return ExitCode.OK


class Printer:
    """Prints for people: on stdout, or on stderr if stdout is for JSON.

    With --quiet there are no notes, and if stdout is for JSON, which has all results, nothing but
    what is wrong with the input.
    """

    def __init__(self, json_path: str | None, *, quiet: bool) -> None:
        self._file = sys.stderr if json_path == STDOUT else sys.stdout
        self._silent = quiet and json_path == STDOUT
        self._quiet = quiet

    def seed(self, seed: int) -> None:
        """Print the seed: first, so that it is known whatever happens."""
        if not self._silent:
            click.echo(f"seed {seed:#x}", file=self._file)

    def report(self, report: Report) -> None:
        """Print tables, notes and findings."""
        if not self._silent:
            from spfemu.report.text import print_report

            print_report(report, self._file, notes=not self._quiet)

    def result(self, text: str, *, newline: bool = True) -> None:
        """Print what belongs to the result."""
        if not self._silent:
            click.echo(text, file=self._file, nl=newline)

    def note(self, text: str) -> None:
        """Print what is no result; not with --quiet."""
        if not self._quiet:
            click.echo(text, file=self._file)
