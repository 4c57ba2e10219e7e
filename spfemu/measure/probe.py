# SPDX-License-Identifier: MIT
"""Look shortly at the machine between samples: a cache line should cost what it did before.

On shared machines the cost of moving a cache line between two cores was seen to go from 29 to 127
ns within a minute, which is more than most protocols differ.  So every sample stands between two
probes, and samples between which the machine changed are not compared.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from spfemu import shims
from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link
from spfemu.errors import WorkerDiedError
from spfemu.kernel import kernel
from spfemu.layout import CACHE_LINE, WORD
from spfemu.measure import processes, topology
from spfemu.primitives import cpu_relax, read_cycles, smp_load_acquire, smp_store_release

PROBE_FACTOR = 1.5
"""Samples are not compared if the probe around them moved by more than this factor."""
HOPS = 2000
"""Moves of the line in one batch."""
BATCHES = 7
"""The first is dropped, the median of the others counts."""
CLOCK_ROUNDS = 20_000
CLOCK_CYCLES = 8
"""Dependent instructions of one cycle each in a round of `clock_loop`."""
LOST_SECONDS = 0.05
"""A batch that takes longer is given up: the other core was taken away."""
ANSWER_SECONDS = 20.0

_MASK = (1 << 62) - 1
_TURN, _COMMAND, _DONE, _RESULTS = (i * 2 * CACHE_LINE for i in range(4))


@kernel
def line_loop(turn: int, first: int, hops: int, limit: int) -> int:
    """Pass the word `turn` to and fro; cycles for `hops` moves, or -1 after `limit` cycles.

    One core waits for the even values and one for the odd ones (`first`), each adds one.
    Acquire and release pair with the other core's: the line itself is what is passed.
    """
    start = read_cycles()
    value = first
    while value < hops:
        while smp_load_acquire(turn) != value:
            if read_cycles() - start > limit:
                return -1
            cpu_relax()
        smp_store_release(turn, value + 1)
        value += 2
    return read_cycles() - start


@kernel
def clock_loop(rounds: int) -> tuple[int, int]:
    """Run a chain of 8 dependent one-cycle instructions per round; its cycles and its value."""
    x = 88172645463325252
    start = read_cycles()
    for _round in range(rounds):
        x = (x ^ (x << 13)) & _MASK
        x = x ^ (x >> 7)
        x = (x ^ (x << 17)) & _MASK
    return read_cycles() - start, x


@dataclass(frozen=True)
class Probe:
    """What one probe saw; `line_ns` is None with a single CPU, and infinite when it was lost."""

    line_ns: float | None
    """Cost of moving a cache line between two cores [ns]."""
    clock_ghz: float
    """One-cycle instructions per nanosecond."""


def moved(probes: Sequence[Probe | None], factor: float = PROBE_FACTOR) -> bool:
    """Tell whether the machine changed by more than `factor` between any two of the probes."""
    seen = [p for p in probes if p is not None]
    lines = [p.line_ns for p in seen if p.line_ns is not None]
    if any(math.isinf(line) for line in lines):
        return True
    clocks = [p.clock_ghz for p in seen]
    return any(values and max(values) > factor * min(values) for values in (lines, clocks))


class Prober:
    """Two pinned processes that sleep until they are asked for a probe."""

    def __init__(self, cpus: Sequence[int] | None = None) -> None:
        order = topology.worker_order(topology.cores()) if cpus is None else list(cpus)
        self.cpus = order[:2]
        this_module: ModuleType = __import__(__name__, fromlist=["line_loop"])
        self._engine = NativeEngine(link([functions_of(this_module)], {}))
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._buffer = ctypes.c_char.from_buffer(self._memory)
        self._base = ctypes.addressof(self._buffer)
        self._words = np.frombuffer(self._memory, np.int64)
        self._rate = cycles_per_second()
        self._processes: list[Any] = []
        self._asked = 0

    def __enter__(self) -> Self:
        """Start the processes."""
        for i, cpu in enumerate(self.cpus):
            with processes.uninterrupted():
                self._processes.append(processes.start("spfemu probe", self._serve, i, cpu))
        self.probe()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        with processes.uninterrupted():
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.join()
            self._processes = []

    def probe(self) -> Probe:
        """Probe now: a few milliseconds.  Raises WorkerDiedError if the processes are gone."""
        library = shims.load()
        self._words[_TURN // WORD] = self._words[_DONE // WORD] = 0
        self._asked += 1
        library.spf_smp_store_release(self._base + _COMMAND, self._asked)
        library.spf_futex_wake(self._base + _COMMAND, 2)
        deadline = time.monotonic() + ANSWER_SECONDS
        done = self._base + _DONE
        while (count := library.spf_smp_load_acquire(done)) < len(self._processes):
            if wait([p.sentinel for p in self._processes], 0) or time.monotonic() > deadline:
                raise WorkerDiedError("the processes that probe the machine died or do not answer")
            library.spf_futex_wait(done, count, 100_000_000)
        cycles, line = self._words[_RESULTS // WORD], self._words[_RESULTS // WORD + 1]
        clock = CLOCK_ROUNDS * CLOCK_CYCLES / (float(cycles) / self._rate * 1e9)
        return Probe(self._line_ns(int(line)), clock)

    def _line_ns(self, cycles: int) -> float | None:
        if len(self.cpus) < 2:
            return None
        return float("inf") if cycles < 0 else cycles / HOPS / self._rate * 1e9

    def _serve(self, index: int, cpu: int) -> None:
        """Answer probes until killed (in the child)."""
        os.sched_setaffinity(0, {cpu})
        library = shims.load()
        command, done = self._base + _COMMAND, self._base + _DONE
        served = 0
        while True:
            while library.spf_smp_load_acquire(command) == served:
                library.spf_futex_wait(command, served, -1)
            served += 1
            self._answer(index)
            library.spf_atomic_fetch_add(done, 1)
            library.spf_futex_wake(done, 1)

    def _answer(self, index: int) -> None:
        results = _RESULTS // WORD
        if index == 0:
            clocks = [self._engine.call("clock_loop", CLOCK_ROUNDS) for _ in range(3)]
            self._words[results] = min(c[0] for c in clocks if isinstance(c, tuple))
        if len(self.cpus) == 2:
            line = self._line_cycles(index)
            if index == 0:
                self._words[results + 1] = line

    def _line_cycles(self, index: int) -> int:
        """Median cycles of a batch, or -1 if the other core was lost."""
        limit = round(LOST_SECONDS * self._rate)
        cycles = []
        for batch in range(BATCHES):
            turn = self._base + _TURN
            # the word goes on counting from batch to batch
            found = self._engine.call(
                "line_loop", turn, batch * HOPS + index, (batch + 1) * HOPS, limit
            )
            if not isinstance(found, int) or found < 0:
                return -1
            cycles.append(found)
        return round(float(np.median(cycles[1:])))


_rate: list[float] = []


def cycles_per_second() -> float:
    """Rate of the cycle counter, measured once (20 ms)."""
    if not _rate:
        _rate.append(float(shims.load().spf_cycles_per_second(20_000_000)))
    return _rate[0]
