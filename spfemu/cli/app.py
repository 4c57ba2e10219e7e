# SPDX-License-Identifier: MIT
"""The group of commands: finds them by name, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import IO, Any

import click

from spfemu import __version__
from spfemu.errors import ExitCode, SpfemuError, nearest

COMMANDS = (
    *("run", "scale", "stress", "fidelity", "record", "replay"),
    *("list", "doctor", "completion"),
)
"""Each is the object `command` of the module of its name in this package."""


class Failure(click.ClickException):
    """An error that is reported in one line, with its own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line to stderr."""
        click.echo(f"spfemu: {self.format_message()}", file=file, err=True)


class Application(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"spfemu.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown name suggests the nearest."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            hint = nearest(name, COMMANDS)
            ctx.fail(f"no command '{name}'{hint} ({', '.join(COMMANDS)})")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a user can cause ends in one line."""
        try:
            return super().invoke(ctx)
        except SpfemuError as error:
            raise Failure(str(error), error.exit_code) from error
        except KeyboardInterrupt:
            raise Failure("interrupted, nothing was finished", ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # who read the output has enough of it; what is still buffered is not to fail again
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(ExitCode.ENVIRONMENT)
        except OSError as error:
            # a full disk, too many open files: nothing that the emulated machine did wrong
            raise Failure(str(error), ExitCode.ENVIRONMENT) from error


@click.group(cls=Application, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spfemu", message="%(prog)s %(version)s")
def cli() -> None:
    """Emulate Linux page-fault concurrency, for real and at machine speed.

    Start with "spfemu scale": a minute later a table and a plot show how the classical and the
    speculative page fault scale on this machine, beside its real kernel.

    \b
    Exit status:
      0    fine
      1    a check of the emulated machine failed
      2    the command cannot mean anything as given
      3    this machine lacks something, or the output cannot be written
      4    inconclusive: the run does not show what it was meant to
      5    a worker process died or hung
      130  interrupted; what was finished is kept
    """
