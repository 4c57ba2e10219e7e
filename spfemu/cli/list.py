# SPDX-License-Identifier: MIT
"""``spfemu list``: what there is, one line each."""

from __future__ import annotations

import click

from spfemu.cli import types

SCHEMA = "spfemu-list-1"
KINDS = ("workloads", "protocols", "engines", "counters")
STEPPED = "a scheduler chooses who runs next: for scripts of interleavings in Python, not for `run`"


@click.command("list", short_help="Name workloads, protocols, engines and counters.")
@click.argument("kind", type=types.Choice(KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(kind: str | None, *, as_json: bool) -> None:
    """Say which workloads, protocols, engines and counters there are; KIND is one of these."""
    everything = _everything()
    chosen = {kind: everything[kind]} if kind else everything
    if as_json:
        import msgspec

        encoded = msgspec.json.encode({"schema": SCHEMA, **chosen})
        click.echo(msgspec.json.format(encoded, indent=2).decode())
        return
    for i, (title, entries) in enumerate(chosen.items()):
        click.echo(("\n" if i else "") + title)
        _print(entries)


def _everything() -> dict[str, dict[str, str]]:
    from spfemu.measure import build
    from spfemu.report.counters import COUNTERS

    return {
        "workloads": build.list_workloads(),
        "protocols": build.list_protocols(),
        "engines": {**build.ENGINES, "stepped": STEPPED},
        "counters": dict(COUNTERS),
    }


def _print(entries: dict[str, str]) -> None:
    width = max(len(name) for name in entries)
    for name, text in entries.items():
        click.echo(f"  {name:<{width}}  {text}")
