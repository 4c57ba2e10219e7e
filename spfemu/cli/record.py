# SPDX-License-Identifier: MIT
"""``spfemu record``: write down the calls on memory of a real program."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spfemu.cli import options, output
from spfemu.errors import ExitCode

if TYPE_CHECKING:
    from spfemu.trace.record import Recorded

DEFAULT = "spfemu.trace"


@click.command(
    "record",
    short_help="Record the calls on memory of a real program, for replay.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(),
    default=DEFAULT,
    show_default=True,
    metavar="FILE",
    help="Where the recording goes.",
)
@options.quiet
@click.argument("program", nargs=-1, metavar="-- COMMAND...")
@click.pass_context
def command(ctx: click.Context, path: str, program: tuple[str, ...], *, quiet: bool) -> None:
    """Run COMMAND under strace and record its calls on memory, threads and processes included.

    The recording also has the map of each process after its exec and at its end.  It is text, and
    larger by 150 bytes for each call.  strace makes the program several times slower, and each exec
    and each end of a process takes a tenth of a second more.  Ctrl-C ends the program; what was
    recorded is kept.

    \b
    Examples:
      spfemu record -- python3 -c 'import json'
      spfemu record -o gcc.trace -- gcc -O2 -c hello.c
    """
    if not program:
        raise click.UsageError("say which program: spfemu record -- COMMAND...", ctx)
    from spfemu.trace import record

    record.find_strace()
    record.find_command(program[0])
    output.check_writable([path])
    # no progress: the terminal is the program's
    with Path(path).open("wb") as file:
        recorded = record.record(program, file)
    _print(path, recorded, output.Printer(None, quiet=quiet))
    ctx.exit(ExitCode.INTERRUPTED if recorded.interrupted else ExitCode.OK)


def _print(path: str, recorded: Recorded, printer: output.Printer) -> None:
    printer.note(f"wrote {path}: {recorded.lines:,} lines, {recorded.maps:,} maps")
    if recorded.missed:
        lost = f"{recorded.missed:,} maps could not be read in time and are left out"
        output.problems([f"{path}: {lost}"])
    if recorded.status:
        printer.note(f"the program {_how(recorded.status)}")


def _how(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
