# SPDX-License-Identifier: MIT
"""What on this machine disturbs a measurement, and what can be done; nothing is changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from spfemu.results import Environment, Record

GIB = 1 << 30
LEAST_MEMORY_BYTES = GIB
BUSY_SHARE = 0.25
"""Load per CPU from which other programs take time from the workers."""


class Finding(Record, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    state: str
    level: Literal["ok", "advice", "warning"] = "ok"
    action: str | None = None
    """What can be done; null if there is nothing to do."""


class Setting(Record, frozen=True, kw_only=True):
    """What `examine` needs beyond the environment of a report."""

    missing_counters: dict[str, str]
    """Hardware counters that cannot be opened, and why."""
    compiler: str | None
    can_pin: bool
    cache_directory: str
    cache_objects: int
    cache_bytes: int
    cache_writable: bool


def look_around() -> Setting:
    """Look at what belongs to this process and its user."""
    from spfemu.engines.cache import cache_directory
    from spfemu.measure import hardware

    directory = cache_directory()
    objects = list(directory.glob("*.o")) if directory.is_dir() else []
    candidates = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    return Setting(
        missing_counters=hardware.unavailable(),
        compiler=next((found for c in candidates if c and (found := shutil.which(c))), None),
        can_pin=_can_pin(),
        cache_directory=str(directory),
        cache_objects=len(objects),
        cache_bytes=sum(path.stat().st_size for path in objects),
        cache_writable=_writable(directory),
    )


def _can_pin() -> bool:
    """Tell whether this process may choose its CPUs, by choosing those that it has."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(0))
    except OSError:
        return False
    return True


def _writable(directory: Path) -> bool:
    """Tell whether the directory can be written, or made."""
    existing = next(p for p in [directory, *directory.parents] if p.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def examine(machine: Environment, setting: Setting) -> list[Finding]:
    """Judge a machine; the order is that of the output."""
    return [
        *_processor(machine),
        *_clock(machine),
        *_neighbours(machine),
        *_memory(machine),
        *_tools(machine, setting),
    ]


def _processor(machine: Environment) -> Iterator[Finding]:
    yield Finding(name="processor", state=machine.cpu_model or machine.machine)
    cpus = len(machine.cpus)
    state = f"{machine.cores} cores, {cpus} CPUs may be used"
    if machine.cores < 2:
        yield Finding(
            name="cores",
            state=state,
            level="warning",
            action="one core shows no contention: measure on a machine with more, or widen the "
            "affinity (taskset)",
        )
    else:
        yield Finding(name="cores", state=state)
    quota = machine.cpu_quota
    if quota is not None and quota < cpus:
        yield Finding(
            name="CPU quota",
            state=f"{quota:g} CPUs' worth of time",
            level="warning",
            action=f"workers are stopped when the quota is used up: raise it to {cpus}, or use "
            f"at most {max(1, int(quota))} workers",
        )
    if machine.smt:
        yield Finding(
            name="SMT",
            state="on",
            level="advice",
            action="workers take one thread of every core first; beyond that two share a core: "
            "echo off > /sys/devices/system/cpu/smt/control",
        )
    else:
        yield Finding(name="SMT", state=_known(machine.smt, {False: "off"}))
    if (machine.numa_nodes or 1) > 1:
        yield Finding(
            name="NUMA nodes",
            state=str(machine.numa_nodes),
            level="advice",
            action="curves bend where a second node begins: use numactl to stay on one",
        )
    yield Finding(name="isolated CPUs", state=machine.isolated_cpus or "none")


def _clock(machine: Environment) -> Iterator[Finding]:
    governor = machine.governor
    if governor not in (None, "performance"):
        yield Finding(
            name="frequency governor",
            state=str(governor),
            level="advice",
            action="the clock follows the load: cpupower frequency-set -g performance",
        )
    else:
        yield Finding(name="frequency governor", state=governor or "not known")
    if machine.turbo:
        yield Finding(
            name="turbo",
            state="on",
            level="advice",
            action="one worker may run at a higher clock than many: echo 1 > "
            "/sys/devices/system/cpu/intel_pstate/no_turbo, or echo 0 > "
            "/sys/devices/system/cpu/cpufreq/boost",
        )
    else:
        yield Finding(name="turbo", state=_known(machine.turbo, {False: "off"}))
    if machine.machine == "x86_64" and machine.clocksource not in (None, "tsc", "kvm-clock"):
        yield Finding(
            name="clock source",
            state=str(machine.clocksource),
            level="warning",
            action="the kernel does not trust the cycle counter: latencies may be wrong",
        )
    else:
        yield Finding(name="clock source", state=machine.clocksource or "not known")


def _neighbours(machine: Environment) -> Iterator[Finding]:
    busy = machine.load_1min > BUSY_SHARE * len(machine.cpus)
    yield Finding(
        name="load",
        state=f"{machine.load_1min:.2f} in the last minute",
        level="warning" if busy else "ok",
        action="other programs take time from the workers: stop them, or wait" if busy else None,
    )
    if machine.virtualisation is None:
        yield Finding(name="virtualisation", state="none seen")
    else:
        yield Finding(
            name="virtualisation",
            state=machine.virtualisation,
            level="advice",
            action="other guests change what a cache line costs: believe ratios with their "
            "intervals, not single figures",
        )


def _memory(machine: Environment) -> Iterator[Finding]:
    available = machine.memory_available_bytes
    short = available < LEAST_MEMORY_BYTES
    yield Finding(
        name="memory",
        state=f"{available / GIB:.1f} of {machine.memory_bytes / GIB:.1f} GiB available",
        level="warning" if short else "ok",
        action="big areas or many workers will not fit: use a smaller --size" if short else None,
    )
    yield Finding(
        name="transparent huge pages",
        state=f"{machine.transparent_hugepages or 'not known'}; host runs switch them off for "
        "themselves unless --thp is given",
    )


def _tools(machine: Environment, setting: Setting) -> Iterator[Finding]:
    yield Finding(
        name="pinning",
        state="allowed" if setting.can_pin else "not permitted",
        level="ok" if setting.can_pin else "warning",
        action=None
        if setting.can_pin
        else "nothing can be measured: allow sched_setaffinity "
        "(a container's seccomp profile forbids it)",
    )
    yield _counters(machine, setting)
    yield Finding(
        name="C compiler",
        state=setting.compiler or "none",
        level="ok" if setting.compiler else "advice",
        action=None
        if setting.compiler
        else "needed to install again only (Debian: apt install gcc)",
    )
    yield Finding(name="code generator", state=f"llvmlite {machine.llvmlite}, LLVM {machine.llvm}")
    size = f"{setting.cache_objects} objects, {setting.cache_bytes / (1 << 20):.1f} MiB"
    yield Finding(
        name="cache of compiled code",
        state=f"{setting.cache_directory}: {size}",
        level="ok" if setting.cache_writable else "advice",
        action=None
        if setting.cache_writable
        else "it cannot be written, so every start compiles: set SPFEMU_CACHE_DIR",
    )


def _counters(machine: Environment, setting: Setting) -> Finding:
    there = ", ".join(machine.perf_counters) or "none"
    if not setting.missing_counters:
        return Finding(name="hardware counters", state=there)
    reasons = sorted(set(setting.missing_counters.values()))
    missing = ", ".join(setting.missing_counters)
    return Finding(
        name="hardware counters",
        state=there,
        level="advice",
        action=f"results have no {missing}: {'; '.join(reasons)}",
    )


def _known(value: bool | None, names: dict[bool, str]) -> str:  # noqa: FBT001
    return "not known" if value is None else names.get(value, str(value))
