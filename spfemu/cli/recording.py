# SPDX-License-Identifier: MIT
"""``--trace``: `run` and `scale` measure a recording in place of a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spfemu.cli import output
from spfemu.cli.progress import progress

if TYPE_CHECKING:
    from spfemu.replay.table import Table
    from spfemu.results import Report

option = click.option(
    "--trace",
    "trace_path",
    type=click.Path(),
    metavar="FILE",
    help="Measure a recording of 'spfemu record' in place of a workload.",
)
MEANINGLESS = ("workers", "writers", "rate", "size", "areas", "mode", "overlap", "target")
"""Options that mean nothing with a recording."""


def read(ctx: click.Context, path: str, *, quiet: bool) -> Table:
    """Read a recording; lines that cannot be used are told."""
    from spfemu.replay.table import read_table

    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in MEANINGLESS and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} means nothing with --trace", ctx)
    with progress(quiet=quiet) as show:
        table = read_table(path, show)
    output.problems(table.problems)
    return table


def print_passes(printer: output.Printer, report: Report, table: Table) -> None:
    """Say what one pass took, beside the recorded time."""
    printer.result(f"one pass through {table.calls:,} calls of process {table.pid} takes")
    for result in report.results:
        rate = result.operations_per_second.median / result.workers
        taken = f"{1e3 / rate:,.3g} ms" if rate else "longer than was measured"
        printer.result(f"  {result.protocol:<12} {taken}")
    if table.recorded_seconds is not None:
        printer.result(f"  {'recorded':<12} {1e3 * table.recorded_seconds:,.3g} ms, by strace")
