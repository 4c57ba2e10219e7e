# SPDX-License-Identifier: MIT
"""Record where and with what a measurement was made; whatever is not there is None."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import psutil

import spfemu
from spfemu import results
from spfemu.engines.jit import compiler_versions
from spfemu.layout import layout_hash
from spfemu.measure import hardware, topology
from spfemu.measure.probe import cycles_per_second
from spfemu.measure.topology import read_text

CHECKOUT = Path(spfemu.__file__).resolve().parent.parent


def record(root: Path = Path("/")) -> results.Environment:
    """Look at this machine and this process; `root` is where /proc and /sys are looked for."""
    versions = compiler_versions()
    sys = root / "sys"
    cpu_dir = sys / "devices/system/cpu"
    available = topology.cores(cpu_dir)
    first = cpu_dir / f"cpu{available[0].cpu}"
    memory = psutil.virtual_memory()
    return results.Environment(
        started_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        spfemu=_version(),
        revision=revision(),
        layout=f"{layout_hash():016x}",
        python=platform.python_version(),
        numpy=np.__version__,
        llvmlite=versions["llvmlite"],
        llvm=versions["llvm"],
        target=versions["target"],
        hostname=platform.node(),
        kernel=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu_model=cpu_model(root),
        cores=len({(c.package, c.core) for c in available}),
        cpus=[c.cpu for c in available],
        cpu_quota=cpu_quota(root),
        smt=_flag(cpu_dir / "smt/active"),
        governor=read_text(first / "cpufreq/scaling_governor"),
        turbo=turbo(cpu_dir),
        isolated_cpus=read_text(cpu_dir / "isolated") or None,
        numa_nodes=len(list((sys / "devices/system/node").glob("node[0-9]*"))) or None,
        clocksource=read_text(sys / "devices/system/clocksource/clocksource0/current_clocksource"),
        cycles_per_second=cycles_per_second(),
        virtualisation=virtualisation(root),
        transparent_hugepages=transparent_hugepages(root),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        load_1min=os.getloadavg()[0],
        perf_counters=[k for k in hardware.KINDS if k not in hardware.unavailable()],
    )


def _version() -> str:
    try:
        return importlib.metadata.version("spfemu")
    except importlib.metadata.PackageNotFoundError:
        return spfemu.__version__


def revision(checkout: Path = CHECKOUT) -> str | None:
    """Git commit of the checkout that this code runs from, with ``-dirty`` if it was changed."""
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            [git, "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40",
             "--match="],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def cpu_model(root: Path = Path("/")) -> str | None:
    """Name of the processor; on arm64, which has none, its implementer and part numbers."""
    text = read_text(root / "proc/cpuinfo") or ""
    found: dict[str, str] = dict(re.findall(r"^([^\t:\n]+?)\s*:[ \t]*(.*)$", text, re.MULTILINE))
    if found.get("model name"):
        return found["model name"]
    if "CPU implementer" in found:
        return f"implementer {found['CPU implementer']} part {found.get('CPU part', '?')}"
    return None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the control group grants, or None without a limit."""
    words = (read_text(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return None
    try:
        return int(words[0]) / int(words[1])
    except (ValueError, ArithmeticError):
        return None


def turbo(cpu_dir: Path) -> bool | None:
    """Whether cores may run faster than their nominal clock."""
    no_turbo = _flag(cpu_dir / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return not no_turbo
    return _flag(cpu_dir / "cpufreq/boost")


def virtualisation(root: Path = Path("/")) -> str | None:
    """Name of the hypervisor as far as it tells, ``hypervisor`` if not, or None on bare metal."""
    if (read_text(root / "sys/hypervisor/type")) is not None:
        return read_text(root / "sys/hypervisor/type")
    flags = re.search(
        r"^flags\s*:.*\bhypervisor\b", read_text(root / "proc/cpuinfo") or "", re.MULTILINE
    )
    vendor = read_text(root / "sys/class/dmi/id/sys_vendor")
    if flags is not None:
        return vendor or "hypervisor"
    return vendor if vendor in ("QEMU", "KVM") else None


def transparent_hugepages(root: Path = Path("/")) -> str | None:
    """Return the chosen word of the setting ``always [madvise] never``."""
    text = read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", text or "")
    return chosen.group(1) if chosen else None


def _flag(path: Path) -> bool | None:
    text = read_text(path)
    return None if text not in ("0", "1") else text == "1"
