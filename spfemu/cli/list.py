# SPDX-License-Identifier: MIT
"""``spfemu list``: what there is, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spfemu.cli import types

if TYPE_CHECKING:
    from spfemu.measure.shared_writes import SharedWrites

SCHEMA = "spfemu-list-3"
KINDS = ("workloads", "protocols", "engines", "counters", "mutants")
SHARED_WRITES = "shared_writes"
STEPPED = "a scheduler chooses who runs next: for scripts of interleavings in Python, not for `run`"


@click.command("list", short_help="Name workloads, protocols, engines, counters and mutants.")
@click.argument("kind", type=types.Choice(KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(kind: str | None, *, as_json: bool) -> None:
    """Say which workloads, protocols, engines, counters, mutants there are; KIND is one of these.

    With protocols as KIND, each is stepped through a fault and what that wrote to cache lines which
    other CPUs use is counted.  That takes a few seconds the first time.
    """
    everything: dict[str, dict[str, Any]] = {**_everything()}
    chosen = {kind: everything[kind]} if kind else everything
    counted = _shared_writes() if kind == "protocols" else {}
    if as_json:
        import msgspec

        document = {"schema": SCHEMA, **chosen, **({SHARED_WRITES: counted} if counted else {})}
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    for i, (title, entries) in enumerate(chosen.items()):
        click.echo(("\n" if i else "") + title)
        _print(entries)
    if counted:
        click.echo("\nshared writes of a fault, counted step by step")
        _print({name: str(writes) for name, writes in counted.items()})


def _shared_writes() -> dict[str, SharedWrites]:
    from spfemu.cli.progress import progress
    from spfemu.measure.shared_writes import shared_writes_table

    with progress(quiet=False) as show:
        return shared_writes_table(show)


def _everything() -> dict[str, dict[str, str]]:
    from spfemu.measure import build
    from spfemu.report.counters import COUNTERS
    from spfemu.stress.mutant import mutants

    return {
        "workloads": build.list_workloads(),
        "protocols": build.list_protocols(),
        "engines": {**build.ENGINES, "stepped": STEPPED},
        "counters": dict(COUNTERS),
        "mutants": {name: mutant.what for name, mutant in mutants().items()},
    }


def _print(entries: dict[str, str]) -> None:
    width = max(len(name) for name in entries)
    for name, text in entries.items():
        click.echo(f"  {name:<{width}}  {text}")
