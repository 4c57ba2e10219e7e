# SPDX-License-Identifier: MIT
"""The command line: one module per command, imported when it is used.

What a command needs beyond click is imported inside it, so that ``--help`` and completion answer
at once: `app` is the group, `types` the kinds of values, `options` what commands share.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit; the entry point of the console script.

    SIGTERM means what Ctrl-C means: end, and keep what was finished.
    """
    try:
        _run()
    except KeyboardInterrupt:
        # not in a command: while modules were imported, all of them in here for that
        sys.stderr.write("spfemu: interrupted, nothing was finished\n")
        sys.exit(130)


def _run() -> None:
    import signal

    try:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        from spfemu.cli.app import cli

        cli.main(prog_name="spfemu")
    finally:
        # all is done: from here on a signal may end the process without a word
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
