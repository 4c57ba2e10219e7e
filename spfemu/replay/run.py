# SPDX-License-Identifier: MIT
"""Makes the calls of a trace on the emulated kernel and compares what comes of them."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import psutil

import spfemu.mm
from spfemu.engines.native import NativeEngine
from spfemu.engines.source import Program, functions_of, link
from spfemu.errors import UsageError
from spfemu.events import Event as Counted
from spfemu.layout import PAGE_SIZE
from spfemu.measure import build
from spfemu.mm.config import CONFIG_LINUX_VERSION
from spfemu.protocols import protocol_functions
from spfemu.replay import placing
from spfemu.replay.machine import Machine
from spfemu.replay.outcome import Outcome
from spfemu.replay.player import Player
from spfemu.replay.size import TOUCHES, Sizes, scan
from spfemu.segment import Segment
from spfemu.trace.maps import Mapping
from spfemu.trace.order import in_order
from spfemu.trace.strace import Reader

ENTRY_POINTS = (
    *("cpu_idle_enter", "cpu_idle_exit", "cond_resched", "rcu_barrier", "switch_mm"),
    *("mm_alloc", "mmget", "mmput", "sys_fork"),
    *("sys_mmap", "sys_mmap_file", "sys_munmap", "sys_mprotect", "sys_mremap", "sys_brk"),
    *("sys_madvise", "sys_mlock", "sys_mlock2", "sys_munlock", "sys_mlockall", "sys_munlockall"),
    *("sys_msync", "sys_mincore", "sys_create", "sys_close"),
    *("place_mapping", "choose_address", "touch_pages"),
)
FRAMES_SHARE = 0.5
"""Largest share of the available memory that frames may take."""
WITHOUT_MAPPINGS = "bare"

Progress = Callable[[str, float | None], None]


def replay_program(protocol: str, overrides: Sequence[str], version: int) -> Program:
    """Put the kernel functions of a replay together."""
    build.choose("protocol", protocol, build.protocols())
    if protocol == WITHOUT_MAPPINGS:
        raise UsageError(f"'{protocol}' takes no notice of mappings: there is nothing to replay")
    names = [m.name for m in pkgutil.iter_modules(spfemu.mm.__path__) if m.name != "worker"]
    modules = [importlib.import_module(f"spfemu.mm.{name}") for name in names]
    layers = [*map(functions_of, modules), protocol_functions(protocol), functions_of(placing)]
    program = link(layers, {"CONFIG_LINUX_VERSION": version}, overrides)
    return build.reachable(program, ENTRY_POINTS)


@cache
def compiled(protocol: str, overrides: tuple[str, ...], version: int) -> NativeEngine:
    """Return what a replay runs; raises UsageError, KernelSourceError."""
    return NativeEngine(replay_program(protocol, overrides, version))


def replay(
    path: str,
    protocol: str,
    *,
    touch: str,
    workers: int | None,
    initial: tuple[Mapping, ...],
    overrides: Sequence[str],
    progress: Progress,
) -> Outcome:
    """Replay the trace in the file `path`; see docs/replay.md.

    `initial` is the first process's map, for a trace that has none.  Ctrl-C ends it; what was done
    is kept.  Raises UsageError if nothing of the file can be used, ResourceError.
    """
    build.choose("way to touch", touch, TOUCHES)
    sizes, version = measure(path, touch, initial, progress)
    progress(f"compiling for {protocol}", None)
    engine = compiled(protocol, tuple(overrides), version)
    frames_max = int(psutil.virtual_memory().available * FRAMES_SHARE) // PAGE_SIZE
    segment = Segment.create(sizes.geometry(workers, frames_max), populate=False)
    outcome = Outcome(protocol)
    outcome.short_of_frames = sizes.frames > frames_max
    try:
        player = Player(Machine(engine, segment), outcome, touch, initial)
        with reading(path, f"replaying with {protocol}", progress) as reader:
            _play(player, reader)
        outcome.violations = player.machine.finish()
        totals = segment.cpus["event"].sum(axis=0)
        outcome.events.update({e.name: int(totals[e]) for e in Counted})
    finally:
        segment.close()
    return outcome


def _play(player: Player, reader: Reader) -> None:
    """Play all events, up to the end or to Ctrl-C."""
    outcome = player.outcome
    started = time.monotonic()
    try:
        for event in in_order(reader):
            player.event(event, reader)
    except KeyboardInterrupt:
        outcome.partial = True
    player.finish()
    outcome.seconds = time.monotonic() - started
    outcome.recorded_seconds = reader.seconds
    outcome.lines = reader.lines
    outcome.skipped.update(reader.skipped)
    outcome.problems = reader.problems.texts()


def measure(
    path: str, touch: str, initial: tuple[Mapping, ...], progress: Progress
) -> tuple[Sizes, int]:
    """Read a trace once; returns what it needs, and the kernel's version that it is to have.

    Raises UsageError if nothing in it can be used.
    """
    with reading(path, f"reading {path}", progress) as reader:
        sizes = scan(reader, touch, initial)
    if sizes.calls == 0:
        why = [*reader.problems.texts(), f"{path}: there is no call on memory in it"]
        raise UsageError(f"nothing to replay: {why[0]}")
    return sizes, min(reader.version or CONFIG_LINUX_VERSION, CONFIG_LINUX_VERSION)


@contextlib.contextmanager
def reading(path: str, what: str, progress: Progress) -> Iterator[Reader]:
    """Open a trace, and tell how far it has been read; raises UsageError."""
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError(f"cannot read {path}: it is read twice, so it must be a file")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        size = max(Path(path).stat().st_size, 1)
        progress(what, None)
        yield Reader(file, path, lambda read: progress(what, read / size))
