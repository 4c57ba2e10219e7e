# SPDX-License-Identifier: MIT
"""Everything that reads what comes from outside, as functions of bytes.

Each ends normally or with the error that it documents; anything else that it raises is a bug.
`test_readers.py` feeds them within seconds, `scripts/fuzz` for as long as one likes.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from spfemu import results
from spfemu.engines.cache import find
from spfemu.errors import UsageError
from spfemu.fidelity import program
from spfemu.layout import layout_hash
from spfemu.measure import environment, topology
from spfemu.mm.flags import Madv, Map, Prot
from spfemu.replay.run import replay
from spfemu.replay.table import read_table
from spfemu.stress import mutant
from spfemu.stress import report as stress
from spfemu.trace import maps
from spfemu.trace.order import in_order
from spfemu.trace.problems import Problems
from spfemu.trace.strace import Reader

TESTS = Path(__file__).parents[1]
SEED_LINES = 30


@dataclass(frozen=True)
class Target:
    """A reader, what it reads when all is well, and words of its language."""

    feed: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


def strace(data: bytes) -> None:
    """Read a trace to its end: events in order, problems with the numbers of lines that exist."""
    reader = Reader(io.BytesIO(data), "t")
    for event in in_order(reader):
        assert 1 <= event.line <= reader.lines + 1
    assert all(1 <= p.line <= reader.lines + 1 for p in reader.problems.kept)
    assert all("\n" not in text for text in reader.problems.texts())


def _as_file(data: bytes, read: Callable[[str], object]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            read(file.name)
        except UsageError as error:
            one_line(error)


def one_line(error: Exception) -> None:
    """Check what a user would see."""
    assert "\n" not in str(error)


def trace_table(data: bytes) -> None:
    """Sort a trace's calls by thread, for `run --trace`."""
    _as_file(data, read_table)


def replayed(data: bytes) -> None:
    """Make a trace's calls on the emulated kernel, whose invariants hold whatever they are."""

    def play(path: str) -> None:
        outcome = replay(
            path, "spf", touch="all", workers=None, initial=(), overrides=(),
            progress=lambda *_: None,
        )  # fmt: skip
        assert outcome.violations == []

    _as_file(data, play)


def process_maps(data: bytes) -> None:
    """Read /proc/PID/maps, from a file that a user names."""
    problems = Problems("maps")
    lines = data.decode("utf-8", "surrogateescape").splitlines()
    found = maps.parse(lines, problems)
    again = maps.parse(maps.text(found).split("\n")[:-1], Problems("again"))
    assert [maps.compared(m) for m in again] == [maps.compared(m) for m in found]


def report(data: bytes) -> None:
    """Read a report; what is one can be written and read again."""
    try:
        found = results.decode(data)
    except UsageError as error:
        one_line(error)
    else:
        assert results.decode(results.encode(found)) == found


def stress_report(data: bytes) -> None:
    """Read a report of `stress`, to replay it."""
    _as_file(data, lambda path: stress.read(path, (), 1.0))


def mutant_header(data: bytes) -> None:
    """Read what a mutant says of itself; none of it is run."""
    _as_file(data, lambda path: mutant.load(Path(path)))


def fidelity_program(data: bytes) -> None:
    """Read a program of `fidelity --replay`."""
    _as_file(data, program.load)


def cache_file(data: bytes) -> None:
    """Read a kept object: what is not whole is not there."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "object"
        path.write_bytes(data)
        assert find(str(path)) is None


def machine(data: bytes) -> None:
    """Look at a machine all of whose files in /proc and /sys hold the same."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        cpu = root / "sys/devices/system/cpu"
        for name in MACHINE_FILES:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        environment.cpu_model(root)
        environment.cpu_quota(root)
        environment.virtualisation(root)
        environment.transparent_hugepages(root)
        environment.turbo(cpu)
        topology.worker_order(topology.cores(cpu, {0, 1}))


MACHINE_FILES = (
    "proc/cpuinfo",
    *("sys/fs/cgroup/cpu.max", "sys/hypervisor/type", "sys/class/dmi/id/sys_vendor"),
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/devices/system/cpu/intel_pstate/no_turbo",
    *(f"sys/devices/system/cpu/cpu{i}/topology/core_id" for i in range(2)),
    "sys/devices/system/cpu/cpu0/topology/physical_package_id",
)


def _beginnings(folder: str, pattern: str) -> tuple[bytes, ...]:
    files = sorted((TESTS / folder).glob(pattern))
    return tuple(
        b"".join(file.read_bytes().splitlines(keepends=True)[:SEED_LINES]) for file in files
    )


def _words(*texts: str) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


_TRACES = _beginnings("trace/data", "*.trace")
_MANUAL = b"""1 mmap(0x10000, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED, -1, 0) = 0x10000
1 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 3</x y\\7\\"z>, 0x1000) = 0x7f0000000000
1 brk(NULL) = 0x5000
1 brk(0x7000) = 0x7000
1 clone(child_stack=NULL, flags=CLONE_VM|SIGCHLD) = 2
2 mremap(0x10000, 8192, 16384, MREMAP_MAYMOVE <unfinished ...>
1 munmap(0x10000, 4096) = 0
2 <... mremap resumed>) = 0x20000
1 mprotect(0x20000, 4096, PROT_NONE) = 0
1 madvise(0x20000, 4096, MADV_DONTNEED) = 0
1 fork() = 3
3 execve("/bin/x", ["x"], 0x0 /* 3 vars */) = 0
# maps 3 initial
00400000-00452000 r-xp 00001000 08:02 173521 /usr/bin/dbus-daemon
7ffe0000-7fff0000 rw-p 00000000 00:00 0 [stack]
# end
3 +++ exited with 0 +++
"""  # noqa: E501
_TRACE_WORDS = _words(
    *("mmap(", "munmap(", "brk(", "mremap(", "clone(", "execve(", "exit_group(", "<... "),
    *(" resumed>", " <unfinished ...>", ")", " = ", "0x7f0000000000", "NULL", "4096", ", "),
    *("|", "-1", "3</x>", "3<\\8>", "3<\\xff>", "?", "ENOMEM (x)", "\n", "1 ", "[pid 2] "),
    *("# maps 1 final\n", "# end\n", "--- SIGSEGV {} ---", '"', "+++ exited with 0 +++"),
    *("strace: Process 3 attached", "1.5 ", "12:00:00 ", "/*", "{", "18446744073709551615"),
    *(f"PROT_{p.name}" for p in Prot),
    *(f"MAP_{m.name}" for m in Map),
    *(f"MADV_{m.name}" for m in Madv),
)
_STRESS = msgspec.json.encode(
    stress.Report(
        *(stress.REPORT_SCHEMA, layout_hash(), "spf", 2, 1, 7, True, []),
        stress.Verdict("DATA", "check", "text", 7),
    )
)
_MAPS = tuple(
    b"".join(line for line in seed.splitlines(keepends=True) if b"-" in line[:20])
    for seed in (*_TRACES, _MANUAL)
)
_JSON_WORDS = _words(
    *(f'"{name}"' for name in (*results.Report.__struct_fields__, results.SCHEMA)),
    *('{"', '":', "[", "]", "{", "}", ",", "null", "true", "1e999", "-1", "0.5", '"x"', "NaN"),
    *("18446744073709551616", "\\ud800", "[" * 50, '{"a":' * 50),
)

TARGETS = {
    "strace": Target(strace, (*_TRACES, _MANUAL), _TRACE_WORDS),
    "trace_table": Target(trace_table, (*_TRACES, _MANUAL), _TRACE_WORDS),
    "replayed": Target(replayed, (_MANUAL,), _TRACE_WORDS),
    "process_maps": Target(
        process_maps,
        _MAPS,
        _words("r-xp", "rw-s", " ", "-", "00000000", "ffffffff", "08:02", "\n", "\\012", "[heap]"),
    ),
    "report": Target(report, (), _JSON_WORDS),
    "stress_report": Target(stress_report, (_STRESS,), _JSON_WORDS),
    "mutant_header": Target(
        mutant_header,
        tuple(path.read_bytes() for path in sorted(mutant.FOLDER.glob("*.py"))[:8]),
        _words("PROTOCOL", "PROMISE", "CONFIG", " = ", '"', "{", "}", "[]", "1", "\0", "(" * 90),
    ),
    "fidelity_program": Target(
        fidelity_program,
        (
            b"""{"format":"spfemu-program-1","note":"","operations":[
  {"call":"mmap","window":"arena","length":4096,"prot":3,"flags":50},
  {"call":"write","window":"arena","value":7}
]}
""",
        ),
        (*_JSON_WORDS, *_words("mmap", "mremap", "fork", "heap", "arena", "low", "top")),
    ),
    "cache_file": Target(cache_file, (), ()),
    "machine": Target(
        machine,
        (b"processor\t: 0\nmodel name\t: x\nflags\t\t: fpu hypervisor\n", b"100000 100000\n"),
        _words("max", " ", "\t: ", "\n", "model name", "[always]", "9" * 400, "9" * 5000, "-1"),
    ),
}
