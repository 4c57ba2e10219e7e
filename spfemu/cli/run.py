# SPDX-License-Identifier: MIT
"""``spfemu run``: measure one point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spfemu.cli import options, output, recording, types
from spfemu.cli.progress import Report as Progress
from spfemu.cli.progress import progress

if TYPE_CHECKING:
    from spfemu.measure.plan import Plan
    from spfemu.results import Report

ONLY_EMULATOR = (
    "protocol",
    "engine",
    "table_free",
    "seq_line",
    "lookup",
    "khugepaged",
    "nodes",
    "swap",
    "memory",
    "fault_overhead",
    "overrides",
)
"""Options that mean nothing on the real kernel."""
ONLY_HOST = ("thp",)


@click.command("run", short_help="Measure one workload, protocol and number of workers.")
@click.argument("workload", type=types.Known("workload", types.workload_names), required=False)
@recording.option
@options.protocol
@click.option(
    "--target",
    type=types.Choice(("emulator", "host")),
    default="emulator",
    show_default=True,
    help="The emulated kernel, or the real one of this machine.",
)
@click.option(
    "--engine",
    type=types.Choice(("native", "plain")),
    default="native",
    show_default=True,
    help="Compiled, or interpreted for reading and debugging.",
)
@click.option(
    "--workers", type=int, default=1, show_default=True, metavar="N", help="Faulting workers."
)
@click.option("--latency", is_flag=True, help="Take the time of every fault; slower.")
@options.json_result
@options.shared(seconds=1.0, repeats=6)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Measure WORKLOAD with one protocol and one number of workers.

    \b
    Examples:
      spfemu run page_fault1 --workers 2
      spfemu run pft --protocol classic --workers 4 --latency
      spfemu run mixed --workers 2 --writers 1 --rate 1000 --overlap
      spfemu run page_fault1 --target host
      spfemu run --trace spfemu.trace --protocol classic

    With --trace, an operation is one pass through the recorded calls of the process that has the
    most threads, with a worker for each; --pages of each mapping are touched.
    """
    _refuse_meaningless(ctx, given["target"])
    if (given["workload"] is None) == (given["trace_path"] is None):
        raise click.UsageError("say what to measure: a WORKLOAD, or --trace FILE", ctx)
    json_path: str | None = given["json_path"]
    output.check_writable([json_path])
    from spfemu.measure.plan import Plan

    table = None
    if given["trace_path"] is not None:
        table = recording.read(ctx, given["trace_path"], quiet=given["quiet"])
        given |= {"workload": "trace", "workers": len(table.threads)}
    plan = Plan(
        workload=given["workload"],
        protocol=given["protocol"],
        target=given["target"],
        engine=given["engine"],
        workers=given["workers"],
        trace=table,
        latency=given["latency"],
        **options.plan_arguments(given),
        **options.overhead_argument(given["fault_overhead"]),
    )
    printer = output.Printer(json_path, quiet=given["quiet"])
    printer.seed(plan.seed)
    with progress(quiet=given["quiet"]) as show:
        report = _measure(plan, show, overhead_from_host=given["fault_overhead"] == "host")
    printer.report(report)
    if table is not None:
        recording.print_passes(printer, report, table)
    if json_path is not None:
        output.write_json(json_path, report)
    ctx.exit(output.exit_code(report))


def _refuse_meaningless(ctx: click.Context, target: str) -> None:
    """Refuse options that were given and would change nothing."""
    for name in ONLY_EMULATOR if target == "host" else ONLY_HOST:
        source = ctx.get_parameter_source(name)
        if source is click.core.ParameterSource.COMMANDLINE:
            option = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise click.UsageError(f"{option} means nothing with --target {target}", ctx)


def _measure(plan: Plan, show: Progress, *, overhead_from_host: bool) -> Report:
    """Measure the plan; what Ctrl-C or the death of a worker left of it is marked as partial."""
    from dataclasses import replace

    from spfemu import results
    from spfemu.measure import compare, environment, races, run

    where = environment.record()
    if overhead_from_host:
        plan = replace(plan, fault_overhead_ns=compare.calibrate_overhead(plan, show))
    series = run.run_series(plan, show)
    result = run.make_result(series, overhead_from_host=overhead_from_host)
    missing = [races.no_fault(result), races.no_race(result), races.stopped(result)]
    return results.Report(
        command=output.command_line(),
        seed=plan.seed,
        environment=where,
        results=[result],
        partial=series.partial,
        inconclusive=[reason for reason in missing if reason is not None],
        warnings=compare.warnings_of([series.prepared], [result]),
    )
