# SPDX-License-Identifier: MIT
"""Which files a report goes to; kept apart so that nothing heavy is imported to check them."""

from __future__ import annotations

from pathlib import Path

from spfemu.errors import UsageError

PLOT_FORMATS = ("svg", "png")


def plot_paths(path: str | Path) -> list[Path]:
    """Files for a plot: that one if it ends in .svg or .png, else both; raises UsageError."""
    given = _named(path)
    if given.suffix.lower().lstrip(".") in PLOT_FORMATS:
        return [given]
    return [given.with_name(f"{given.name}.{suffix}") for suffix in PLOT_FORMATS]


def csv_paths(path: str | Path, names: list[str]) -> dict[str, Path]:
    """File for each curve: the path itself for a single one, else with the curve's name put in.

    Raises UsageError.
    """
    given = _named(path)
    if len(names) == 1:
        return {names[0]: given}
    suffix = given.suffix or ".csv"
    return {name: given.with_name(f"{given.stem}-{name}{suffix}") for name in names}


def _named(path: str | Path) -> Path:
    """Return the path if names can be made from it."""
    given = Path(path)
    if not given.name or given.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory; name a file")
    return given
