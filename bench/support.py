# SPDX-License-Identifier: MIT
"""An emulated machine in this process, and timing of two things in turns."""

import pkgutil
import time
from importlib import import_module

import kernel_loops

import spfemu.mm
from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link
from spfemu.measure.build import protocols, reachable
from spfemu.measure.statistics import ratio
from spfemu.segment import Segment

ROUNDS = 15
WARMUP_ROUNDS = 2
AREA = 1 << 40
"""Where the benches map: far from what get_unmapped_area would choose."""


class Machine:
    """A segment and one CPU of it that runs in this process, with the kernel compiled."""

    def __init__(self, engine, geometry):
        self.engine = engine
        self.segment = Segment.create(geometry)
        # the second user is a fiction: a process with one thread would not speculate
        self.segment.mms["mm_users"] = 2
        self.cpu = self.segment.cpu(0)
        self.call("cpu_online")

    def call(self, name, *arguments):
        """Run a kernel function on the CPU."""
        return self.engine.call(name, self.cpu, *arguments)

    def checked(self, name, *arguments):
        """Run a kernel function that returns 0 unless it fails."""
        result = self.call(name, *arguments)
        assert result == 0, f"{name}{arguments} returned {result}"

    def event(self, event):
        """How often the CPU has counted `event`."""
        return int(self.segment.cpus["event"][0][event])

    def close(self):
        """Stop the CPU and let the memory go."""
        self.call("cpu_offline")
        self.segment.close()


def compile_kernel(protocol):
    """Compile the kernel with `protocol` and the loops of the benches."""
    names = [m.name for m in pkgutil.iter_modules(spfemu.mm.__path__)]
    modules = [import_module(f"spfemu.mm.{name}") for name in names]
    modules += [import_module(f"spfemu.workloads.{n}") for n in ("common", "defaults")]
    modules += [protocols()[protocol], kernel_loops]
    # as measured runs are built: without the kernel's assertions
    config = {"CONFIG_DEBUG_VM": 0}
    program = link([functions_of(module) for module in modules], config)
    entry_points = [*functions_of(kernel_loops), "cpu_online", "cpu_offline"]
    return NativeEngine(reachable(program, entry_points))


def seconds(function, *arguments):
    """Time one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def ratio_in_turns(first, second, rounds=ROUNDS):
    """Ratio of the seconds that `first` and `second` return, called in turns: A B, B A, A B."""
    results = [], []
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            results[index].append((first, second)[index]())
    return ratio(*results)


def note_ratio(benchmark, name, estimate):
    """Put a ratio and its interval into a result."""
    benchmark.extra_info[name] = estimate.median
    benchmark.extra_info[name + "_interval"] = [estimate.low, estimate.high]
