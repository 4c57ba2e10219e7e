# SPDX-License-Identifier: MIT
"""Kinds of values on the command line."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from spfemu.errors import nearest

SEED_MAX = (1 << 62) - 1
SECONDS_MAX = 7 * 24 * 3600
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0}


class _Parsed(click.ParamType[Any], abc.ABC):
    """A value made from text by `parse`, which raises ValueError with the reason."""

    @abc.abstractmethod
    def parse(self, text: str) -> Any:
        """Return the value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse text; values that are not text are defaults and stay as they are."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(_Parsed):
    """Bytes, with the binary units that kernel tools use."""

    name = "size"

    def parse(self, text: str) -> int:
        """Return bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
        if not match:
            raise ValueError(f"'{text}' is no size: write 4096, 64K, 16M or 1G")
        size = float(match[1]) * (1 << _UNITS[match[2].upper()])
        if size != int(size):
            raise ValueError(f"'{text}' is no whole number of bytes")
        return int(size)


class Seconds(_Parsed):
    """A time, in seconds unless it says ``ms``, ``s`` or ``min``."""

    name = "seconds"

    def parse(self, text: str) -> float:
        """Return seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(|s|ms|m|min)", text.strip())
        if not match:
            raise ValueError(f"'{text}' is no time: write 2, 0.5, 200ms or 1min")
        seconds = float(match[1]) * _SECONDS[match[2]]
        if seconds > SECONDS_MAX:
            raise ValueError(f"'{text}' is more than a week")
        return seconds


class Seed(_Parsed):
    """The number from which all random numbers of a run come."""

    name = "seed"

    def parse(self, text: str) -> int:
        """Return the seed."""
        try:
            seed = int(text, 0)
        except ValueError:
            raise ValueError(f"'{text}' is no seed: write a number such as 42 or 0x2a") from None
        if not 0 <= seed <= SEED_MAX:
            raise ValueError(f"a seed must be from 0 to {SEED_MAX:#x}, not {text}")
        return seed


class Counts(_Parsed):
    """Numbers of workers: ``1,2,4``, ``1-8``, ``0-8:2`` or, doubling, ``1..64x2``."""

    name = "counts"

    def parse(self, text: str) -> tuple[int, ...]:
        """Return the numbers, rising, each once."""
        counts: set[int] = set()
        for part in text.replace(" ", "").split(","):
            counts.update(_expand(part, text))
        if len(counts) > LIMIT_COUNTS:
            raise ValueError(f"'{text}' is {len(counts)} numbers, the most is {LIMIT_COUNTS}")
        return tuple(sorted(counts))


LIMIT_COUNTS = 512
_DIGITS_MAX = 6


def _expand(part: str, text: str) -> Sequence[int]:
    number = rf"(\d{{1,{_DIGITS_MAX}}})"
    if match := re.fullmatch(rf"{number}(?:-{number}(?::{number})?)?", part):
        first, last, step = match.groups()
        if step is not None and int(step) == 0:
            raise ValueError(f"'{part}' has a step of 0")
        found = range(int(first), int(last or first) + 1, int(step or 1))
    elif match := re.fullmatch(rf"{number}\.\.{number}x{number}", part):
        value, last_count, factor = (int(group) for group in match.groups())
        if value < 1 or factor <= 1:
            raise ValueError(f"'{part}' must start at 1 or more and grow")
        powers = []
        while value <= last_count:
            powers.append(value)
            value *= factor
        return _not_empty(powers, part)
    else:
        raise ValueError(f"'{text}' is no list of counts: write 1,2,4 or 1-8 or 1..64x2")
    return _not_empty(found, part)


def _not_empty(counts: Sequence[int], part: str) -> Sequence[int]:
    if not counts:
        raise ValueError(f"'{part}' is empty: the first is above the last")
    return counts


class Names(_Parsed):
    """Names with commas between them."""

    name = "names"

    def __init__(self, known: Callable[[], Sequence[str]]) -> None:
        self._known = known

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the names, each once, in the order given."""
        names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
        if not names:
            raise ValueError("no name is given")
        return names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete the last name of the list."""
        done, comma, begun = incomplete.rpartition(",")
        return [
            CompletionItem(done + comma + name) for name in self._known() if name.startswith(begun)
        ]


class Overhead(_Parsed):
    """Nanoseconds, or ``host``: measured on the real kernel."""

    name = "ns|host"

    def parse(self, text: str) -> float | str:
        """Return nanoseconds or "host"."""
        if text == "host":
            return text
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"'{text}' is no number of nanoseconds, nor 'host'") from None


class Choice(click.Choice[str]):
    """One of a few names; an unknown one suggests the nearest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Say what there is."""
        names = [str(c) for c in self.choices]
        return f"'{value}' is not one of {', '.join(names)}{nearest(str(value), names)}"


class Known(click.ParamType[str]):
    """A name that the command itself checks; completion offers what there is."""

    def __init__(self, name: str, known: Callable[[], Sequence[str]]) -> None:
        self.name = name
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is."""
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the names that begin so."""
        return [CompletionItem(name) for name in self._known() if name.startswith(incomplete)]


def workload_names() -> list[str]:
    """Names of all workloads; imports the emulator."""
    from spfemu.measure import build

    return list(build.list_workloads())


def protocol_names() -> list[str]:
    """Names of all protocols; imports the emulator."""
    from spfemu.measure import build

    return list(build.list_protocols())
