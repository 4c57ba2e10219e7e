# SPDX-License-Identifier: MIT
"""Numbers with units, short enough for a table."""

from __future__ import annotations

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_SIZES = ((30, "GiB"), (20, "MiB"), (10, "KiB"))


def rate(value: float) -> str:
    """Return three significant digits and a metric prefix: ``12.3 M``."""
    for scale, prefix in _PREFIXES:
        # What rounds up to the next prefix is shown with it.
        if value >= scale * 0.9995:
            return f"{_three_digits(value / scale)} {prefix}"
    return _three_digits(value)


def tick(value: float) -> str:
    """Return a round rate without zeros at its end: ``2.5 M``."""
    for scale, prefix in _PREFIXES:
        if value >= scale:
            return f"{value / scale:g} {prefix}"
    return f"{value:g}"


def interval(low: float, high: float) -> str:
    """Return two rates: ``12.1 M to 12.5 M``."""
    return f"{rate(low)} to {rate(high)}"


def ratio(value: float) -> str:
    """Return a ratio with two decimals, or three digits if it is large."""
    return f"{value:.2f}" if value < 100 else _three_digits(value)


def size(value: int) -> str:
    """Return bytes with the largest binary unit that loses nothing: ``16 MiB``."""
    for shift, unit in _SIZES:
        if value >= 1 << shift and value % (1 << shift) == 0:
            return f"{value >> shift} {unit}"
    return f"{value} B"


def count(number: int, noun: str) -> str:
    """Return a number and its noun: ``1 worker``, ``2 workers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float) -> str:
    """Return a share; what is not quite all is not shown as all."""
    text = f"{100 * share:.2f}"
    if share < 1 and text == "100.00":
        text = "99.99"
    return f"{text} %"


def _three_digits(value: float) -> str:
    # limits are where fewer digits would round up to one more
    if value == 0 or value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
