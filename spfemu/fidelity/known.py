# SPDX-License-Identifier: MIT
"""Where the emulator is known to differ from the kernel of this machine, and why.

What changed between versions in a way that can be switched is no difference: the emulator is
compiled to follow the version of this machine (spfemu/mm/versions.py).  What is left is listed
here.  Each entry says which operations it concerns; random programs have none of these.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spfemu.errors import ResourceError
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.program import Operation, Window
from spfemu.mm.config import CONFIG_LINUX_VERSION
from spfemu.mm.flags import PMD_SIZE, TASK_SIZE, Madv, Map, Prot

NEWEST = CONFIG_LINUX_VERSION
OLDEST = 0x50C
"""The emulated kernel itself; nothing is known of what came before."""
CHARGED = 64 << 20
"""Writable memory of this size may be refused by a machine that is small or strict [bytes]."""


@dataclass(frozen=True)
class KnownDifference:
    """One difference: `reason` is a sentence, `concerns` picks the operations that may show it."""

    name: str
    reason: str
    concerns: Callable[[Operation], bool]


def _is_aligned_otherwise(operation: Operation) -> bool:
    fixed = operation.flags & (Map.FIXED | Map.FIXED_NOREPLACE)
    return operation.kind is Kind.MMAP and not fixed and operation.length >= PMD_SIZE


def _is_execute_only(operation: Operation) -> bool:
    return operation.kind in (Kind.MMAP, Kind.MPROTECT) and operation.prot == Prot.EXEC


def _is_beyond(operation: Operation) -> bool:
    address = operation.window is Window.ABSOLUTE and operation.address != 0
    return address or operation.length >= TASK_SIZE


def _is_charged(operation: Operation) -> bool:
    writable = operation.kind in (Kind.MMAP, Kind.MPROTECT) and operation.prot & Prot.WRITE
    return bool(writable) and operation.length % (1 << 64) >= CHARGED


def _asks_for_reclaim(operation: Operation) -> bool:
    return operation.kind is Kind.MADVISE and operation.value == Madv.PAGEOUT


COMMIT_LIMIT = KnownDifference(
    "commit limit",
    "the emulated machine has no overcommit policy: it refuses no writable memory",
    _is_charged,
)
RECLAIM = KnownDifference(
    "reclaim",
    "the emulated machine evicts anonymous memory only; MADV_PAGEOUT also unmaps pages of files "
    "and of shared memory, even where there is no swap to which they could go",
    _asks_for_reclaim,
)
PMD_ALIGNMENT = KnownDifference(
    "huge-page alignment",
    "Linux 6.7 to 6.12 align mappings of 2 MiB or more by rules that later ones gave up",
    _is_aligned_otherwise,
)
EXECUTE_ONLY = KnownDifference(
    "execute-only memory",
    "the emulated CPU has no protection keys, so what may be executed may be read",
    _is_execute_only,
)
ADDRESS_SPACE = KnownDifference(
    "address space",
    "user space of this machine does not end at 128 TiB, so other addresses are impossible",
    _is_beyond,
)


def host_version() -> int:
    """Return the version of this machine's kernel as CONFIG_LINUX_VERSION has it."""
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    if match is None:
        raise ResourceError(f"cannot tell the kernel's version from '{platform.release()}'")
    return (int(match[1]) << 8) + int(match[2])


def followed_version() -> int:
    """Return the version that the emulator is to follow here; raises ResourceError."""
    version = host_version()
    if version < OLDEST:
        raise ResourceError(f"the emulator cannot follow Linux {platform.release()}: 5.12 or later")
    return min(version, NEWEST)


def differences(*, same_task_size: bool) -> tuple[KnownDifference, ...]:
    """Return the known differences from this machine; `same_task_size`: as the emulated one."""
    found = [COMMIT_LIMIT, RECLAIM]
    if 0x607 <= host_version() < 0x60D:
        found.append(PMD_ALIGNMENT)
    if _has_execute_only():
        found.append(EXECUTE_ONLY)
    if not same_task_size:
        found.append(ADDRESS_SPACE)
    return tuple(found)


def _has_execute_only() -> bool:
    """Tell whether the CPU can forbid reading what may be executed."""
    if platform.machine() != "x86_64":
        return True
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return flags is not None and "ospke" in flags[1].split()
