# SPDX-License-Identifier: MIT
"""The command line: one module per command, imported when it is used.

What a command needs beyond click is imported inside it, so that ``--help`` and completion answer
at once: `app` is the group, `types` the kinds of values, `options` what commands share.
"""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit; the entry point of the console script."""
    from spfemu.cli.app import cli

    cli.main(prog_name="spfemu")
    raise SystemExit  # not reached: click exits
