# SPDX-License-Identifier: MIT
"""``spfemu replay``: make the calls of a recording on the emulated kernel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spfemu.cli import options, output, types
from spfemu.cli.progress import progress
from spfemu.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from spfemu.replay.outcome import Outcome
    from spfemu.trace.maps import Mapping

SCHEMA = "spfemu-replay-1"


@click.command("replay", short_help="Replay a recording on the emulated kernel.")
@click.argument("path", metavar="FILE", type=click.Path())
@click.option(
    "--initial-maps",
    type=click.Path(),
    metavar="FILE",
    help="Map that the first process begins with, as /proc/PID/maps; recordings have it.",
)
@click.option(
    "--final-maps",
    type=output.PATH,
    metavar="PATH",
    default=output.STDOUT,
    show_default=True,
    help="Where the maps at the end go.",
)
@click.option(
    "--protocol",
    "protocols",
    type=types.Names(types.protocol_names),
    default=("spf",),
    metavar="NAME,...",
    help="How faults are handled: see 'spfemu list'.  [default: spf]",
)
@click.option(
    "--touch",
    type=types.Choice(("none", "all", "once")),
    default="once",
    show_default=True,
    help="Touch no page of what is mapped, each, or the first.",
)
@click.option(
    "--workers", type=int, metavar="N", help="Emulated CPUs.  [default: one for each thread]"
)
@options.override
@options.json_result
@options.quiet
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Make the calls in FILE once more on the emulated kernel, in the order of the recording.

    FILE is what 'spfemu record' or 'strace -f' wrote.  Each process has an address space of its
    own; mappings go where they went.  Results are compared with the recorded ones, and so are the
    maps at the end.

    \b
    Examples:
      spfemu replay gcc.trace
      spfemu replay gcc.trace --protocol classic,spf,vma-lock --touch all --final-maps /dev/null
      spfemu replay strace.log --initial-maps maps.txt --json result.json
    """
    output.check_writable([given["final_maps"], given["json_path"]])
    from spfemu.layout import NR_CPUS_MAX
    from spfemu.measure.plan import in_range
    from spfemu.replay.run import replay

    if given["workers"] is not None:
        in_range("workers", given["workers"], 1, NR_CPUS_MAX)

    initial = _initial_maps(given["initial_maps"])
    outcomes = []
    with progress(quiet=given["quiet"]) as show:
        for protocol in given["protocols"]:
            outcome = replay(
                given["path"],
                protocol,
                touch=given["touch"],
                workers=given["workers"],
                initial=initial,
                overrides=given["overrides"],
                progress=show,
            )
            outcomes.append(outcome)
            if outcome.partial:
                break
    _report(outcomes, given)
    ctx.exit(max((_exit_code(o) for o in outcomes), key=_SEVERITY.index))


def _initial_maps(path: str | None) -> tuple[Mapping, ...]:
    if path is None:
        return ()
    from spfemu.trace import maps
    from spfemu.trace.problems import Problems

    problems = Problems(path)
    try:
        with Path(path).open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            found = maps.parse(file, problems)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if problems.count:
        raise UsageError(problems.texts()[0])
    return found


def _report(outcomes: list[Outcome], given: dict[str, Any]) -> None:
    """Print and write what came of it."""
    from spfemu.report import replay as text

    json_path: str | None = given["json_path"]
    final_maps: str = given["final_maps"]
    maps = text.final_maps(outcomes[0])
    printer = output.Printer(json_path, quiet=given["quiet"])
    if final_maps != output.STDOUT:
        output.write_file(final_maps, maps.encode("utf-8", "surrogateescape"))
    else:
        printer.result(maps, newline=False)
    for line in text.summary(outcomes):
        printer.result(line)
    output.problems(outcomes[0].problems)
    if json_path is not None:
        _write_json(json_path, outcomes)


def _write_json(path: str, outcomes: list[Outcome]) -> None:
    import msgspec

    from spfemu.report import replay as text

    report = {"schema": SCHEMA, "replays": [text.as_record(o) for o in outcomes]}
    content = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    if path == output.STDOUT:
        click.echo(content, nl=False)
    else:
        output.write_file(path, content)


_SEVERITY = (ExitCode.OK, ExitCode.INCONCLUSIVE, ExitCode.INTERRUPTED, ExitCode.VIOLATION)


def _exit_code(outcome: Outcome) -> ExitCode:
    if outcome.violations or outcome.disagreeing:
        return ExitCode.VIOLATION
    if outcome.partial:
        return ExitCode.INTERRUPTED
    if outcome.problems or outcome.different or outcome.touch_failed:
        return ExitCode.INCONCLUSIVE
    return ExitCode.OK
