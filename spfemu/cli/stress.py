# SPDX-License-Identifier: MIT
"""``spfemu stress``: hunt for broken promises."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from spfemu.cli import options, output, types
from spfemu.cli.progress import progress
from spfemu.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from spfemu.results import Partial
    from spfemu.stress.hunt import HuntPlan, HuntResult

ALL = "all"
NOT_IN_ALL = ("bare", "spf-relookup")
"""Keeps no promise; is documented as unsafe."""
REPORT_FILE = "spfemu-stress.json"
STEPPING_SECONDS = 30.0


def _hunted() -> tuple[str, ...]:
    return (ALL, *types.protocol_names())


@click.command("stress", short_help="Hunt for torn reads and every other broken promise.")
@click.option(
    "--protocol",
    type=types.Known("protocol", _hunted),
    default="spf",
    show_default=True,
    metavar="NAME|all",
    help="How faults are handled: see 'spfemu list'; 'all' takes those that claim to be safe.",
)
@click.option(
    "--workers", type=int, default=2, show_default=True, metavar="N", help="CPUs that mostly fault."
)
@click.option(
    "--writers",
    type=int,
    default=2,
    show_default=True,
    metavar="M",
    help="CPUs that mostly change mappings.",
)
@click.option(
    "--seconds",
    type=types.Seconds(),
    default=10.0,
    show_default=True,
    metavar="S",
    help="How long to hunt in each protocol: 60, 5min.",
)
@click.option("--seed", type=types.Seed(), metavar="K", help="Makes the operations the same.")
@options.override
@click.option(
    "--delays",
    type=types.Choice(("on", "off")),
    default="on",
    show_default=True,
    help="Random delays that make windows wide.",
)
@click.option(
    "--report",
    "report_path",
    type=output.PATH,
    metavar="PATH",
    default=REPORT_FILE,
    show_default=True,
    help="Write what broke a promise, for --replay.",
)
@click.option(
    "--replay",
    "replay_path",
    type=click.Path(),
    metavar="FILE",
    help="Repeat the operations of a report, until the promise breaks again or the time is over.",
)
@options.json_result
@options.quiet
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Run a random mix of all faults and calls and watch whether every promise is kept.

    The mix knows what each access and call must give.  Oracles judge every copy of a VMA, every
    commit, every touch of memory.  The first broken promise ends the hunt with status 1; one that
    saw no torn copy although faults make copies was too weak and ends with 4.

    \b
    Examples:
      spfemu stress
      spfemu stress --protocol all --seconds 1min
      spfemu stress --override my_gate.py --writers 3
      spfemu stress --replay spfemu-stress.json --override my_gate.py

    An override is code and runs as such.  A report names the overrides that it was made with;
    --replay does not load them, they have to be given again.
    """
    if given["report_path"] == output.STDOUT:
        raise UsageError("--report needs a file: '-' is for --json")
    output.check_writable([given["json_path"], given["report_path"]])
    printer = output.Printer(given["json_path"], quiet=given["quiet"])
    plans = _replayed(ctx, given) if given["replay_path"] else _plans(given)
    printer.seed(plans[0].seed)
    from spfemu.measure.run import keep_finished
    from spfemu.stress import report
    from spfemu.stress.hunt import hunt

    results: list[HuntResult] = []
    with keep_finished(results) as ended:
        for plan in plans:
            with progress(quiet=given["quiet"]) as show:
                results.append(hunt(plan, show))
            printer.result(report.text(results[-1]))
            if results[-1].violation is not None:
                _follow_up(plan, results[-1], printer, given)
            if results[-1].partial is not None or results[-1].violation is not None:
                break
    partial = results[-1].partial or ended()
    if partial is not None:
        output.problems([f"spfemu: {partial.reason}"])
    if given["json_path"] is not None:
        output.write_bytes(given["json_path"], report.encode(results, partial))
    ctx.exit(_exit_code(results, partial))


def _follow_up(
    plan: HuntPlan, result: HuntResult, printer: output.Printer, given: dict[str, Any]
) -> None:
    """Write the report, then look for the same in steps, where it can be repeated exactly."""
    from spfemu.stress import report
    from spfemu.stress.stepping import reproduce_apart

    found = result.violation
    assert found is not None
    assert result.round_seed is not None
    output.write_file(given["report_path"], report.encode_found(plan, result))
    printer.note(f"wrote {given['report_path']}: spfemu stress --replay repeats the round")
    printer.note(f"looking for the same in steps, for up to {STEPPING_SECONDS:g} s")
    with progress(quiet=given["quiet"]) as show:
        show(f"stepping, up to {STEPPING_SECONDS:g} s", None)
        small = replace(plan, workers=1, writers=1) if plan.writers else plan
        stepped = reproduce_apart(small.plan(result.round_seed), found.promise, STEPPING_SECONDS)
    printer.result(report.stepped_text(stepped, STEPPING_SECONDS))


def _plans(given: dict[str, Any]) -> list[Any]:
    from spfemu.stress.hunt import HuntPlan

    names = [given["protocol"]]
    if names == [ALL]:
        names = [name for name in types.protocol_names() if name not in NOT_IN_ALL]
    seed = {} if given["seed"] is None else {"seed": given["seed"]}
    first = HuntPlan(
        names[0],
        given["workers"],
        given["writers"],
        given["seconds"],
        overrides=given["overrides"],
        delays=given["delays"] == "on",
        **seed,
    )
    return [replace(first, protocol=name) for name in names]


def _replayed(ctx: click.Context, given: dict[str, Any]) -> list[Any]:
    """Return the plan that a report describes, with the overrides that were given again."""
    from spfemu.stress import report

    for name in ("protocol", "workers", "writers", "seed", "delays"):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name} is in the report: leave it out with --replay")
    return [report.read(given["replay_path"], given["overrides"], given["seconds"])]


def _exit_code(results: list[HuntResult], partial: Partial | None) -> ExitCode:
    if any(r.violation is not None for r in results):
        return ExitCode.VIOLATION
    if partial is not None:
        return ExitCode(partial.status)
    return ExitCode.INCONCLUSIVE if any(r.too_weak for r in results) else ExitCode.OK
