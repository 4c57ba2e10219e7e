# SPDX-License-Identifier: MIT
"""The group of commands: finds them by name, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from spfemu import __version__
from spfemu.errors import ExitCode, SpfemuError, nearest

COMMANDS = (
    *("run", "scale", "stress", "mutants", "fidelity", "record", "replay"),
    *("list", "doctor", "completion"),
)
"""Each is the object `command` of the module of its name in this package."""

DEBUG = "SPFEMU_DEBUG"
"""Environment variable with which an internal error shows its traceback."""


class Failure(click.ClickException):
    """An error that is reported in one line, with its own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line to stderr."""
        click.echo(f"spfemu: {self.format_message()}", file=file, err=True)


def printable(text: str) -> str:
    """Return `text` with line ends, a terminal's codes and the like escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


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
        known = self.get_command(ctx, name) is not None
        if not known and not name.startswith("-") and not ctx.resilient_parsing:
            hint = nearest(name, COMMANDS)
            ctx.fail(f"no command '{name}'{hint} ({', '.join(COMMANDS)})")
        return super().resolve_command(ctx, args)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments of the group."""
        with _in_one_line():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a user can cause ends in one line."""
        with _in_one_line():
            return super().invoke(ctx)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn whatever is raised into a line and an exit code."""
    try:
        yield
    except click.ClickException as error:
        error.message = printable(error.message)  # type: ignore[misc]
        raise
    except (click.exceptions.Exit, click.Abort):
        raise
    except SpfemuError as error:
        raise Failure(str(error), error.exit_code) from error
    except KeyboardInterrupt:
        raise Failure("interrupted, nothing was finished", ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        # who read the output has enough of it; what is still buffered is not to fail again
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(ExitCode.ENVIRONMENT) from None
    except (OSError, MemoryError) as error:
        # a full disk, too many open files: nothing that the emulated machine did wrong
        raise Failure(str(error) or "out of memory", ExitCode.ENVIRONMENT) from error
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        raise Failure(_internal(error), ExitCode.INTERNAL) from error


def _internal(error: Exception) -> str:
    """Say where a mistake of spfemu's showed and how to report it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"internal error: {what} ({Path(place.filename).name}:{place.lineno}): this is a mistake "
        f"in spfemu; please report it with the command and what it prints with {DEBUG}=1"
    )


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
      5    a worker process died or hung; what was finished is kept
      70   a mistake in spfemu itself
      130  interrupted (Ctrl-C, SIGTERM); what was finished is kept
    """
