# SPDX-License-Identifier: MIT
"""``spfemu completion``: print what makes a shell complete commands, options and names."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from spfemu.cli import types

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=types.Choice(SHELLS), required=False)
def command(shell: str | None) -> None:
    """Print the completion script of SHELL: bash, zsh or fish, by default the one in $SHELL.

    \b
    Use it at once, or put that line into the shell's start-up file:
      eval "$(spfemu completion bash)"
    """
    chosen = shell or Path(os.environ.get("SHELL", "")).name
    if chosen not in SHELLS:
        raise click.UsageError(f"say which shell: spfemu completion {'|'.join(SHELLS)}")
    kind = get_completion_class(chosen)
    if kind is None:
        raise click.UsageError(f"this version of click cannot complete in {chosen}")
    from spfemu.cli.app import cli

    click.echo(kind(cli, {}, "spfemu", "_SPFEMU_COMPLETE").source())
