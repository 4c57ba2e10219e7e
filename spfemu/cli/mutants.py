# SPDX-License-Identifier: MIT
"""``spfemu mutants``: break the kernel in known ways and see whether that is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spfemu.cli import options, output, types
from spfemu.cli.progress import progress
from spfemu.errors import ExitCode

if TYPE_CHECKING:
    from spfemu.results import Partial
    from spfemu.stress.matrix import Row

SCHEMA = "spfemu-mutants-2"


@click.command("mutants", short_help="Break the kernel in known ways; see what is found.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--seconds",
    type=types.Seconds(),
    default="20",
    show_default=True,
    metavar="S",
    help="Time to find each of them: 20, 500ms, 1min.",
)
@options.json_result
@options.quiet
@click.pass_context
def command(ctx: click.Context, /, names: tuple[str, ...], **given: Any) -> None:
    """Run kernels that are broken on purpose, and print what caught each of them.

    NAME is a mutant of 'spfemu list mutants', or the path of a file of your own that is one; the
    default is all.  A mutant is an override, so such a file is code and runs as that.  The kill
    matrix says which check caught which mutant and how soon; the exit status is 1 if one survives
    of which that is not known.

    \b
    Examples:
      spfemu mutants
      spfemu mutants no_seq2 fork_flushes_late --seconds 5
      spfemu mutants ./my_mutant.py
    """
    output.check_writable([given["json_path"]])
    from spfemu.measure.run import keep_finished
    from spfemu.stress import matrix, mutant

    chosen = mutant.choose(names)
    rows: list[Row] = []
    with keep_finished(rows) as ended, progress(quiet=given["quiet"]) as show:
        for number, one in enumerate(chosen):
            show(f"{one.name}, {len(chosen) - number} left", number / len(chosen))
            rows.append(matrix.try_mutant(one, given["seconds"]))
    partial = ended()
    _print(rows, given["json_path"], partial)
    if any(row.unexpected for row in rows):
        ctx.exit(ExitCode.VIOLATION)
    ctx.exit(ExitCode.OK if partial is None else partial.status)


def _print(rows: list[Row], json_path: str | None, partial: Partial | None) -> None:
    from spfemu.report.kills import print_kills

    if json_path != output.STDOUT:
        print_kills(rows)
    if partial is not None:
        output.problems([f"spfemu: {partial.reason}; {len(rows)} mutants were tried"])
    if json_path is not None:
        _write_json(json_path, rows, partial)


def _write_json(path: str, rows: list[Row], partial: Partial | None) -> None:
    import msgspec

    document = {
        "schema": SCHEMA,
        "partial": partial,
        "mutants": [_fields(row) for row in rows],
    }
    content = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    output.write_bytes(path, content)


def _fields(row: Row) -> dict[str, Any]:
    mutant = row.mutant
    return {
        "name": mutant.name,
        "id": mutant.id,
        "protocol": mutant.protocol,
        "promise": mutant.promise.name,
        "kills": {
            name: None if kill is None else {"check": kill.check, "seconds": kill.seconds}
            for name, kill in row.kills.items()
        },
        "survives": mutant.survives,
    }
