# SPDX-License-Identifier: MIT
"""What the benches share: an emulated machine in this process, the C reference, notes.

    pytest bench                            # measure
    pytest bench --benchmark-disable        # only see that everything runs

A round does a fixed amount of work inside the machine, so what the tables show is time per round;
``extra_info`` has what it comes to per fault, lock or page.  Comparisons are taken in turns here,
A B B A, since a later bench meets another machine.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import primitive_loops
import pytest
from support import ROUNDS, WARMUP_ROUNDS, Machine, compile_kernel

from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link
from spfemu.layout import PAGE_SIZE
from spfemu.segment import Geometry


@pytest.fixture(scope="session")
def compiled():
    """Compiled kernels by protocol, each compiled once."""
    engines = {}

    def get(protocol):
        if protocol not in engines:
            engines[protocol] = compile_kernel(protocol)
        return engines[protocol]

    return get


@pytest.fixture
def machine(compiled):
    """Make a machine: `machine(protocol, frames, vmas)`."""
    made = []

    def make(protocol="spf", frames=1024, vmas=256):
        geometry = Geometry(nr_frames=frames, nr_vmas=vmas)
        made.append(Machine(compiled(protocol), geometry))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def primitives():
    """Compiled loops over primitives, by name."""
    engine = NativeEngine(link([functions_of(primitive_loops)], {}))
    return engine.compiled.function


@pytest.fixture(scope="session")
def c_loops(tmp_path_factory):
    """The same loops in C, built with cc -O2; skips the bench if there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: set CC or install one")
    library = tmp_path_factory.mktemp("c") / "primitive_loops.so"
    source = Path(__file__).with_name("primitive_loops.c")
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))

    def get(name):
        function = loaded[name]
        function.argtypes = [ctypes.c_int64, ctypes.c_int64]
        function.restype = ctypes.c_int64
        return function

    return get


@pytest.fixture
def words():
    """Address of a page-aligned page of zeros."""
    buffer = ctypes.create_string_buffer(2 * PAGE_SIZE)
    yield (ctypes.addressof(buffer) + PAGE_SIZE - 1) & -PAGE_SIZE
    del buffer


@pytest.fixture
def measure(benchmark):
    """Time a call in rounds of a fixed size: `measure(target, *arguments, setup=...)`.

    Returns the median seconds of a round, or None when benchmarks are disabled.
    """

    def run(target, *arguments, setup=None):
        benchmark.pedantic(
            target, args=arguments, setup=setup, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS
        )
        return benchmark.stats.stats.median if benchmark.enabled else None

    return run
