# SPDX-License-Identifier: MIT
"""Which CPUs there are and in which order workers take them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Core:
    """A CPU as Linux numbers them, with the physical core it is a thread of."""

    cpu: int
    package: int
    core: int


def read_text(path: Path) -> str | None:
    """Contents of a small file without the final newline, or None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path, default: int) -> int:
    """Number in a small file, or `default`."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return default


def cores(root: Path = SYSFS, allowed: set[int] | None = None) -> list[Core]:
    """All CPUs that this process may use; one without topology files is a core of its own."""
    usable = os.sched_getaffinity(0) if allowed is None else allowed
    found = []
    for cpu in sorted(usable):
        directory = root / f"cpu{cpu}" / "topology"
        package = read_int(directory / "physical_package_id", 0)
        found.append(Core(cpu, package, read_int(directory / "core_id", cpu)))
    return found


def worker_order(available: list[Core]) -> list[int]:
    """CPUs in the order in which workers take them.

    One thread of every core first, package by package; their SMT siblings only then.
    """
    seen: dict[tuple[int, int], int] = {}
    ranked = []
    for core in available:
        key = (core.package, core.core)
        sibling = seen.get(key, 0)
        seen[key] = sibling + 1
        ranked.append((sibling, core.package, core.cpu))
    return [cpu for _, _, cpu in sorted(ranked)]


def smt_active(available: list[Core]) -> bool:
    """Tell whether two of the CPUs are threads of one core."""
    return len({(c.package, c.core) for c in available}) < len(available)
