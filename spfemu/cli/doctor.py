# SPDX-License-Identifier: MIT
"""``spfemu doctor``: what on this machine will disturb a measurement."""

from __future__ import annotations

import click

SCHEMA = "spfemu-doctor-1"


@click.command("doctor", short_help="Say what on this machine disturbs a measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(*, as_json: bool) -> None:
    """Say what on this machine will disturb a measurement, and what can be done.

    Only looks: nothing is changed.
    """
    from spfemu.cli import machine
    from spfemu.measure import environment

    where = environment.record()
    findings = machine.examine(where, machine.look_around())
    if as_json:
        import msgspec

        report = {"schema": SCHEMA, "environment": where, "findings": findings}
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.name:<{width}}  {finding.state}")
    for level, title in (("advice", "Advice"), ("warning", "Warnings")):
        chosen = [f for f in findings if f.level == level]
        if chosen:
            click.echo(f"\n{title}")
            for finding in chosen:
                click.echo(f"  {finding.name}: {finding.action}")
    if all(finding.level == "ok" for finding in findings):
        click.echo("\nNothing that would disturb a measurement was seen.")
