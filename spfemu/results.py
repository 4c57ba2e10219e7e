# SPDX-License-Identifier: MIT
"""The records that a measurement leaves, exactly as they stand in the JSON; see docs/json.md.

The order of fields is the order of keys.  Units are part of a name unless the name says a rate.
A value that the machine does not offer is null, never zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from spfemu.errors import UsageError

SCHEMA: Final = "spfemu-report-2"
"""Names the form of the records; a change that a reader could notice counts it up."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records."""


class Estimate(Record, frozen=True, kw_only=True):
    """A median of samples with its 95 % interval."""

    median: float
    low: float
    high: float
    samples: list[float]


class Percentiles(Record, frozen=True, kw_only=True):
    """Latencies of one kind of operation [ns]."""

    p50: float
    p90: float
    p99: float
    p99_9: float = msgspec.field(name="p99.9")
    max: float


class Latency(Record, frozen=True, kw_only=True):
    """Latencies of faults and of the writers' operations; null where nothing was recorded."""

    faults: Percentiles | None = None
    writers: Percentiles | None = None


class Hardware(Record, frozen=True, kw_only=True):
    """Hardware counters of one worker, user mode, over all repeats; null if there is none."""

    worker: int
    cycles: int | None = None
    instructions: int | None = None
    cache_references: int | None = None
    cache_misses: int | None = None


class Probe(Record, frozen=True, kw_only=True):
    """What the machine was like right before and right after one sample.

    `cache_line_ns` is the cost of moving a cache line between two cores (null on one core, and
    when the other core was taken away meanwhile),
    `clock_hertz` the rate of a chain of dependent instructions of one cycle each; `repeated`
    counts the samples that were thrown away before it because the probe had moved;
    `waited_percent` is the largest share of the sample for which a worker was ready to run and
    something else had its CPU (null where the kernel does not tell); `stopped` tells whether a
    signal stopped a worker meanwhile.
    """

    cache_line_ns_before: float | None
    cache_line_ns_after: float | None
    clock_hertz_before: float
    clock_hertz_after: float
    repeated: int = 0
    waited_percent: float | None = None
    stopped: bool = False


class Override(Record, frozen=True, kw_only=True):
    """A file that replaced kernel functions."""

    file: str
    sha256: str
    functions: list[str]


class Result(Record, frozen=True, kw_only=True):
    """One point: one workload under one protocol with one number of workers."""

    workload: str
    target: Literal["emulator", "host"]
    protocol: str | None
    """null on the host: the real kernel has its own."""
    engine: str
    mode: Literal["threads", "processes"]
    workers: int
    writers: int
    seconds: float
    """Measured time of one repeat."""
    repeats: int
    """Repeats that were finished: the number of samples."""
    seed: int
    table_free: str | None
    """How page tables are freed: rcu or irq; null on the host."""
    faults_per_second: Estimate
    operations_per_second: Estimate
    writer_operations_per_second: Estimate | None
    latency_ns: Latency | None
    events: dict[str, int]
    hardware: list[Hardware] | None
    violations: list[str]
    seq_line: str | None = None
    """Cache line of mmap_seq: shared (with mmap_lock) or own; null on the host."""
    lookup: str | None = None
    """How VMAs are looked up: walk or latch; null on the host."""
    khugepaged: bool = False
    """Whether a kernel thread made huge pages meanwhile."""
    nodes: int | None = None
    """NUMA nodes of the emulated machine; null on the host."""
    size_bytes: int
    """Size of an area."""
    areas: int
    pages: int
    """Pages touched per operation and area, where that is not the whole area."""
    writer_rate: float = 0.0
    """Operations per second that each writer tries to do; 0: as fast as it can."""
    overlap: bool = False
    fault_overhead_ns: float = 0.0
    """Time spun in every fault for what the emulator leaves out."""
    fault_overhead_from_host: bool = False
    overrides: list[Override] = []
    transparent_hugepages: bool = False
    """Whether they were asked for; host only."""
    cpus: list[int] = []
    """The CPU of each worker, then of each writer."""
    oversubscribed: bool = False
    """More workers and writers than cores: not to be compared with points that are not."""
    idle_percent: float | None = None
    """Idle share of all usable CPUs while measuring."""
    probes: list[Probe] = []
    """One for each sample."""
    memory_bytes: int | None = None
    """Size of the segment; null on the host."""
    memory_overhead_bytes: int | None = None
    frames_bytes: int | None = None
    """Memory of the emulated machine; null on the host."""
    swap_bytes: int | None = None
    """Its swap area; null on the host."""
    """What of it is neither frames nor page tables."""


class Operand(Record, frozen=True, kw_only=True):
    """One side of a ratio: a point, and where it stands in `results`."""

    result: int
    workload: str
    target: Literal["emulator", "host"]
    protocol: str | None
    workers: int


class Ratio(Record, frozen=True, kw_only=True):
    """A comparison of points that were measured in turns; above 1 the numerator is faster."""

    quantity: Literal["faults_per_second", "operations_per_second"]
    numerator: Operand
    denominator: Operand
    median: float
    low: float
    high: float
    samples: list[float]
    inconclusive: str | None = None
    """Why the ratio must not be used, or null."""

    def is_to(self, base: str | None) -> bool:
        """Tell whether tables show it: a curve's scaling, or how something compares with `base`."""
        above, below = self.numerator.protocol, self.denominator.protocol
        return above == below or base in (above, below)


class Environment(Record, frozen=True, kw_only=True):
    """Where and with what it was measured."""

    started_at: str
    """UTC, ISO 8601."""
    spfemu: str
    revision: str | None = None
    """Git commit of the checkout, with -dirty if files differ; null outside a checkout."""
    layout: str
    """Hash of the segment's layout."""
    python: str
    numpy: str
    llvmlite: str
    llvm: str
    target: str
    """What machine code was made for: target triple and processor."""
    hostname: str
    kernel: str
    machine: str
    cpu_model: str | None = None
    cores: int
    """Physical cores that may be used."""
    cpus: list[int]
    """CPUs that may be used."""
    cpu_quota: float | None = None
    """CPUs' worth of time that the control group grants; null: no limit."""
    smt: bool | None = None
    governor: str | None = None
    turbo: bool | None = None
    isolated_cpus: str | None = None
    numa_nodes: int | None = None
    clocksource: str | None = None
    cycles_per_second: float | None = None
    """Rate of the cycle counter."""
    virtualisation: str | None = None
    transparent_hugepages: str | None = None
    memory_bytes: int
    memory_available_bytes: int
    load_1min: float
    perf_counters: list[str] = []
    """Hardware counters that can be opened."""


class Partial(Record, frozen=True, kw_only=True):
    """What ended a command before it was done."""

    status: int
    """The exit status that says so."""
    reason: str


class Report(Record, frozen=True, kw_only=True):
    """Everything that one command measured."""

    schema: Literal["spfemu-report-2"] = SCHEMA
    command: list[str]
    seed: int
    environment: Environment
    results: list[Result]
    ratios: list[Ratio] = []
    base: str | None = None
    """The protocol with which tables compare all others; null for `run`."""
    finding: str | None = None
    """One sentence that says what the comparison showed."""
    partial: Partial | None = None
    """If it ended early: only finished repeats are in it."""
    inconclusive: list[str] = []
    """Why nothing should be concluded, empty if something may."""
    warnings: list[str] = []


JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading JSON may raise: it is none, it is no text, it is nested too deep."""
JSON_MAX = 64 << 20
"""Bytes of the largest file that is read as JSON; a device or a pipe may have no end."""


def read_json(path: str | Path) -> bytes:
    """Return the contents of a file that somebody else may have written.

    Raises UsageError if it cannot be read or is larger than JSON_MAX.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(JSON_MAX + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > JSON_MAX:
        raise UsageError(f"{path} is larger than the {JSON_MAX >> 20} MiB that are read of JSON")
    return content


def encode(report: Report) -> bytes:
    """Return `report` as JSON, indented, with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def decode(text: bytes | str, name: str = "the report") -> Report:
    """Read what `encode` wrote.

    Raises UsageError, which mentions `name`, if it is something else or of another version.
    """
    try:
        found = msgspec.json.decode(text)
        version = found.get("schema") if isinstance(found, dict) else None
        if version != SCHEMA:
            raise UsageError(f"{name} has schema {version!r}, not {SCHEMA!r}")
        return msgspec.convert(found, Report)
    except JSON_ERRORS as error:
        raise UsageError(f"{name} is not a report of spfemu: {error}") from error


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `encode` writes: every key is always there."""
    document = msgspec.json.schema(Report)
    for definition in document["$defs"].values():
        if "properties" in definition:
            definition["required"] = list(definition["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        **document,
    }
