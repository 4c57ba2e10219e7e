# SPDX-License-Identifier: MIT
"""Fixtures that tests of several folders use."""

import signal

import pytest

from spfemu import results
from spfemu.engines import jit

UNOPTIMISED = {"fidelity", "mm", "protocols", "replay", "workloads"}
"""Folders whose tests compile hundreds of kernels and run each for a moment.  A kernel does the
same without LLVM's passes, which take longer than all else there.  The optimised code, that which
users get, is compared with the other engines in tests/engines, and is what all hunts, commands and
measurements run."""
NATIVE_LEVELS = jit.NATIVE_LEVELS


def pytest_configure():
    """Let Ctrl-C mean what it means to a user: what runs in a shell's background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Choose how kernels are compiled, before a fixture of this test compiles one."""
    quick = item.path.parent.name in UNOPTIMISED
    jit.NATIVE_LEVELS = jit.STEPPED_LEVELS if quick else NATIVE_LEVELS


def estimate(median, spread=0.05):
    """An estimate of three samples around `median`."""
    low, high = median * (1 - spread), median * (1 + spread)
    return results.Estimate(median=median, low=low, high=high, samples=[low, median, high])


def environment():
    """A machine that exists nowhere."""
    return results.Environment(
        started_at="2026-01-02T03:04:05+00:00",
        spfemu="0.1.0",
        layout="0123456789abcdef",
        python="3.11.0",
        numpy="2.0.0",
        llvmlite="0.50.0",
        llvm="22.1.0",
        target="x86_64-unknown-linux-gnu znver3",
        hostname="testhost",
        kernel="Linux 6.1.0",
        machine="x86_64",
        cpu_model="Test CPU",
        cores=2,
        cpus=[0, 1],
        smt=False,
        memory_bytes=8 << 30,
        memory_available_bytes=4 << 30,
        load_1min=0.0,
    )


def point(name, workers, rate, **changed):
    """A result of protocol `name`, or of the host."""
    host = name == "host"
    given = {
        "workload": "page_fault1",
        "target": "host" if host else "emulator",
        "protocol": None if host else name,
        "engine": "native",
        "mode": "threads",
        "workers": workers,
        "writers": 0,
        "seconds": 0.3,
        "repeats": 3,
        "seed": 42,
        "table_free": None if host else "rcu",
        "faults_per_second": estimate(rate),
        "operations_per_second": estimate(rate),
        "writer_operations_per_second": None,
        "latency_ns": None,
        "events": {},
        "hardware": None,
        "violations": [],
        "seq_line": None if host else "shared",
        "lookup": None if host else "walk",
        "size_bytes": 16 << 20,
        "areas": 1,
        "pages": 1,
        "cpus": list(range(workers)),
        "idle_percent": 1.5,
    }
    if name == "spf":
        given["events"] = {
            "SPF_ATTEMPT": 1000 * workers,
            "SPF_ABORT": 4,
            "SPF_ABORT_PMD": 3,
            "SPF_ABORT_PUD": 1,
        }
    return results.Result(**(given | changed))


def operand(points, index):
    """The point at `index` as one side of a ratio."""
    chosen = points[index]
    return results.Operand(
        result=index,
        workload=chosen.workload,
        target=chosen.target,
        protocol=chosen.protocol,
        workers=chosen.workers,
    )


def ratio(points, above, below, **changed):
    """The ratio of two points."""
    value = points[above].faults_per_second.median / points[below].faults_per_second.median
    given = {
        "quantity": "faults_per_second",
        "numerator": operand(points, above),
        "denominator": operand(points, below),
        "median": value,
        "low": value * 0.97,
        "high": value * 1.03,
        "samples": [value],
    }
    return results.Ratio(**(given | changed))


def make_report(points, ratios=(), **changed):
    """A report of these points."""
    given = {
        "command": ["spfemu", "scale"],
        "seed": 42,
        "environment": environment(),
        "results": list(points),
        "ratios": list(ratios),
    }
    return results.Report(**(given | changed))


@pytest.fixture
def build_point():
    """Make a result: `point`."""
    return point


@pytest.fixture
def build_report():
    """Make a report: `make_report`."""
    return make_report


@pytest.fixture
def scale_report():
    """What `spfemu scale` finds on two cores."""
    rates = {"classic": (9e6, 5e6), "spf": (12e6, 23.9e6), "host": (4e5, 6e5)}
    points = [point(name, n + 1, rates[name][n]) for name in rates for n in range(2)]
    ratios = [ratio(points, 1, 0), ratio(points, 3, 2), ratio(points, 3, 1)]
    return make_report(points, ratios, base="classic", finding="Spf scales and classic does not.")


@pytest.fixture
def run_report():
    """What `spfemu run --latency` finds, with everything that may be there."""
    latency = results.Percentiles(p50=80, p90=100, p99=250.4, p99_9=900, max=12345)
    only = point(
        "spf",
        2,
        12e6,
        writers=1,
        writer_operations_per_second=estimate(1e3),
        latency_ns=results.Latency(faults=latency, writers=latency),
        hardware=[results.Hardware(worker=w, cycles=36_000_000, instructions=72_000_000)
                  for w in range(2)],
        probes=[results.Probe(
            cache_line_ns_before=50.0,
            cache_line_ns_after=None,
            clock_hertz_before=3e9,
            clock_hertz_after=3e9,
        )],
        overrides=[results.Override(file="mine.py", sha256="0" * 64, functions=["pte_map_lock"])],
    )  # fmt: skip
    return make_report([only], command=["spfemu", "run", "mixed"])
