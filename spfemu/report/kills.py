# SPDX-License-Identifier: MIT
"""The kill matrix as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from spfemu.stress.matrix import Row

CHECK_WIDTH = 76


def kill_table(rows: Sequence[Row]) -> Table:
    """Return a table: a line for each mutant and detector that caught it, else one that says so."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("mutant", "id", "protocol", "promise", "caught by", "after", "check"):
        table.add_column(column, no_wrap=True, justify="right" if column == "after" else "left")
    for row in rows:
        mutant = row.mutant
        names = [mutant.name, mutant.id or "", mutant.protocol, mutant.promise.name]
        caught = [(name, kill) for name, kill in row.kills.items() if kill is not None]
        for name, kill in caught:
            check = kill.check.replace("\n", " ")
            table.add_row(*names, name, f"{kill.seconds:.1f} s", _cut(check))
            names = [""] * len(names)
        if not caught:
            table.add_row(*names, "neither", "", _cut(mutant.survives or "it should not survive"))
    return table


def _cut(text: str) -> str:
    return text if len(text) <= CHECK_WIDTH else text[: CHECK_WIDTH - 1] + "…"


def print_kills(rows: Sequence[Row]) -> None:
    """Print the table and one line that sums it up."""
    from spfemu.report.text import print_parts

    killed = sum(row.killed for row in rows)
    expected = sum(not row.killed and not row.unexpected for row in rows)
    text = f"{killed} of {len(rows)} mutants are caught"
    by = Counter(name for row in rows for name, kill in row.kills.items() if kill is not None)
    text += "".join(f", {count} by {name}" for name, count in by.items())
    text += f", {expected} more are known to survive" if expected else ""
    print_parts([kill_table(rows), text])
