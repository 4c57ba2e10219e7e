# SPDX-License-Identifier: MIT
"""``spfemu fidelity``: compare the emulated kernel with the real one, call by call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spfemu.cli import options, output, types
from spfemu.cli.progress import progress
from spfemu.errors import ExitCode

if TYPE_CHECKING:
    from spfemu.fidelity.run import FidelityResult

SCHEMA = "spfemu-fidelity-1"
PROGRAM_FILE = "spfemu-fidelity.program"
REPLAY_MEANINGLESS = ("operations", "seconds", "seed", "program_path", "json_path")
"""Options that mean nothing when one program is run."""


@click.command("fidelity", short_help="Compare the emulated kernel with the real one.")
@click.option(
    "--operations",
    type=int,
    metavar="N",
    help="End after so many calls and touches.  [default: 100000, without --seconds]",
)
@click.option(
    "--seconds", type=types.Seconds(), metavar="S", help="End after so long: 10, 500ms, 5min."
)
@click.option("--seed", type=types.Seed(), metavar="K", help="Makes the programs the same.")
@options.protocol
@options.override
@click.option(
    "--program",
    "program_path",
    type=output.PATH,
    metavar="PATH",
    default=PROGRAM_FILE,
    show_default=True,
    help="Write the shortest program that shows a difference, if there is one.",
)
@click.option(
    "--replay",
    type=click.Path(),
    metavar="FILE",
    help="Run one program that was written by --program instead of random ones.",
)
@options.json_result
@options.quiet
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Run random programs of calls and touches on the emulated kernel and on this machine's.

    After each operation both must have the same result, mappings, present pages, number of minor
    faults and contents.  The first difference is shrunk to a shortest program.

    \b
    Examples:
      spfemu fidelity
      spfemu fidelity --seconds 5min --seed 42
      spfemu fidelity --protocol classic --override my_munmap.py
      spfemu fidelity --replay spfemu-fidelity.program
    """
    if given["replay"] is not None:
        _refuse_meaningless(ctx)
        _replay(ctx, given)
    output.check_writable([given["program_path"], given["json_path"]])
    from spfemu.fidelity.run import new_seed, run_fidelity

    printer = output.Printer(given["json_path"], quiet=given["quiet"])
    seed = new_seed() if given["seed"] is None else given["seed"]
    printer.seed(seed)
    with progress(quiet=given["quiet"]) as show:
        result = run_fidelity(
            given["operations"],
            given["seconds"],
            seed,
            show,
            protocol=given["protocol"],
            overrides=given["overrides"],
        )
    _print(result, given, printer)
    ctx.exit(_exit_code(result))


def _refuse_meaningless(ctx: click.Context) -> None:
    for name in REPLAY_MEANINGLESS:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise click.UsageError(f"{option} means nothing with --replay", ctx)


def _replay(ctx: click.Context, given: dict[str, Any]) -> None:
    """Run one program and end."""
    from spfemu.fidelity import program
    from spfemu.fidelity.run import replay

    operations = program.load(given["replay"])
    found = replay(operations, protocol=given["protocol"], overrides=given["overrides"])
    if found is None:
        click.echo(f"no difference in {len(operations)} operations")
        ctx.exit(ExitCode.OK)
    click.echo(found.listing, nl=False)
    ctx.exit(ExitCode.VIOLATION)


def _print(result: FidelityResult, given: dict[str, Any], printer: output.Printer) -> None:
    json_path: str | None = given["json_path"]
    for known in result.known:
        printer.note(f"left out: {known}")
    verdict = "no difference" if result.found is None else "a difference"
    printer.result(
        f"{verdict} in {result.operations:,} operations, {result.programs:,} programs, "
        f"{result.operations_per_second:,.0f} operations/s, Linux {result.kernel}, "
        f"{result.protocol}"
    )
    for text in result.unrepeated:
        printer.result(f"not seen again: {text}")
    if result.found is not None:
        printer.result("\n" + result.found.listing)
        output.write_file(given["program_path"], result.found.encode())
        printer.note(f"wrote {given['program_path']}: spfemu fidelity --replay runs it")
    if json_path is not None:
        _write_json(json_path, result)


def _write_json(path: str, result: FidelityResult) -> None:
    import msgspec

    fields = {"schema": SCHEMA, **msgspec.to_builtins(result)}
    content = msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
    if path == output.STDOUT:
        click.echo(content, nl=False)
    else:
        output.write_file(path, content)


def _exit_code(result: FidelityResult) -> ExitCode:
    if result.found is not None:
        return ExitCode.VIOLATION
    if result.partial:
        return ExitCode.INTERRUPTED
    return ExitCode.INCONCLUSIVE if result.unrepeated else ExitCode.OK
