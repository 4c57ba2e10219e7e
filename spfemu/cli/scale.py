# SPDX-License-Identifier: MIT
"""``spfemu scale``: how protocols scale with the number of workers, beside the real kernel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spfemu.cli import options, output, recording, types
from spfemu.cli.progress import progress
from spfemu.report.paths import csv_paths, plot_paths

if TYPE_CHECKING:
    from spfemu.replay.table import Table
    from spfemu.results import Report


@click.command("scale", short_help="Compare how protocols scale, beside the real kernel.")
@click.argument(
    "workload", type=types.Known("workload", types.workload_names), default="page_fault1"
)
@recording.option
@click.option(
    "--protocols",
    type=types.Names(types.protocol_names),
    default="classic,spf",
    show_default=True,
    metavar="NAME,...",
    help="What is compared.",
)
@click.option(
    "--base",
    type=types.Known("protocol", types.protocol_names),
    metavar="NAME",
    help="Which protocol the others are compared with.  [default: the first]",
)
@click.option(
    "--workers",
    type=types.Counts(),
    metavar="N,...",
    help="Numbers of workers: 1,2,4 or 1-8 or 1..64x2.  [default: 1 to the number of cores]",
)
@click.option(
    "--with-host/--without-host",
    default=True,
    show_default=True,
    help="Measure the real kernel of this machine beside them.",
)
@click.option(
    "--json",
    "json_path",
    type=output.PATH,
    metavar="PATH",
    help="Where the report goes; '-' for stdout.  [default: spfemu-WORKLOAD.json]",
)
@click.option(
    "--csv",
    "csv_path",
    type=output.PATH,
    metavar="PATH",
    help="Write will-it-scale's columns, a file per curve.",
)
@click.option(
    "--plot",
    "plot_path",
    type=output.PATH,
    metavar="PATH",
    help="Where the plot goes; .svg or .png for one of them.  [default: spfemu-WORKLOAD, both]",
)
@options.shared(seconds=0.3, repeats=9)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Compare how protocols scale on this machine, all measured in turns.

    WORKLOAD is page_fault1 unless given.  Prints a table, ratios with intervals and what was
    found; writes a plot and a report and says where.

    \b
    Examples:
      spfemu scale
      spfemu scale pft --protocols classic,spf,bare --workers 1-4
      spfemu scale pft --protocols classic,spf,vma-lock --base spf
      spfemu scale page_fault1 --fault-overhead host --csv pf1.csv
      spfemu scale --trace spfemu.trace --protocols classic,spf,vma-lock
    """
    table = None
    if given["trace_path"] is not None:
        if ctx.get_parameter_source("workload") is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("say what to measure: a WORKLOAD, or --trace FILE", ctx)
        table = recording.read(ctx, given["trace_path"], quiet=given["quiet"])
        given |= {"workload": "trace", "workers": (len(table.threads),), "with_host": False}
    plan, protocols = _plan(given, table)
    files = _Files(given, protocols)
    files.check()
    printer = output.Printer(given["json_path"], quiet=given["quiet"])
    printer.seed(plan.seed)
    from spfemu.measure import compare

    with progress(quiet=given["quiet"]) as show:
        report = compare.scale(
            plan,
            output.command_line(),
            protocols=protocols,
            base=protocols[0],
            workers=given["workers"],
            with_host=given["with_host"],
            overhead_from_host=given["fault_overhead"] == "host",
            progress=show,
        )
    report = _judge(report)
    printer.report(report)
    if table is not None:
        recording.print_passes(printer, report, table)
    for path in files.write(report):
        printer.note(f"wrote {path}")
    ctx.exit(output.exit_code(report))


def _plan(given: dict[str, Any], table: Table | None) -> tuple[Any, tuple[str, ...]]:
    """Return the plan of all points but for protocol and workers, every one of them checked."""
    from spfemu.measure import compare
    from spfemu.measure.plan import Plan

    arguments: dict[str, Any] = {
        "warmup": compare.SCALE_WARMUP,
        "trace": table,
        **options.plan_arguments(given),
        **options.overhead_argument(given["fault_overhead"]),
    }
    protocols: tuple[str, ...] = given["protocols"]
    if given["base"] is not None:
        protocols = tuple(dict.fromkeys((given["base"], *protocols)))
    counts = given["workers"] or (1,)
    plan = Plan(given["workload"], protocol=protocols[0], workers=counts[0], **arguments)
    arguments["seed"] = plan.seed
    for protocol in protocols:
        for count in counts:
            Plan(given["workload"], protocol=protocol, workers=count, **arguments)
    return plan, protocols


def _judge(report: Report) -> Report:
    """Add the races that were meant to happen and did not."""
    from msgspec.structs import replace

    from spfemu.measure import races

    missing = [reason for r in report.results if (reason := races.no_race(r)) is not None]
    return replace(report, inconclusive=[*report.inconclusive, *missing])


class _Files:
    """The files that the command writes."""

    def __init__(self, given: dict[str, Any], protocols: tuple[str, ...]) -> None:
        default = f"spfemu-{given['workload']}"
        self.json: str = given["json_path"] or f"{default}.json"
        self.plot: str = given["plot_path"] or default
        names = [*protocols, *(["host"] if given["with_host"] else [])]
        self.csv: dict[str, Path] = {}
        if given["csv_path"] is not None:
            self.csv = csv_paths(given["csv_path"], names)

    @property
    def plots(self) -> list[Path]:
        """The pictures."""
        return plot_paths(self.plot)

    def check(self) -> None:
        """Raise UsageError if one of them cannot be written."""
        output.check_writable([self.json, *self.csv.values(), *self.plots])

    def write(self, report: Report) -> list[str]:
        """Write them all and return where."""
        from spfemu.report import plot, series, will_it_scale

        output.write_json(self.json, report)
        written = [] if self.json == output.STDOUT else [self.json]
        for curve in series.group(report.results):
            if curve.name in self.csv:
                output.write_file(self.csv[curve.name], will_it_scale.to_csv(curve).encode("utf-8"))
                written.append(str(self.csv[curve.name]))
        for path in self.plots:
            output.write_file(path, plot.draw(report, path.suffix.lstrip(".").lower()))
            written.append(str(path))
        return written
