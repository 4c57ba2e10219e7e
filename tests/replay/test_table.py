# SPDX-License-Identifier: MIT
"""Recordings as a workload: the table, and workers that make its calls."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from spfemu.cli.app import cli
from spfemu.errors import ExitCode, UsageError
from spfemu.measure import run
from spfemu.measure.plan import Plan
from spfemu.mm.flags import Map, Mremap, Prot
from spfemu.replay import table
from spfemu.replay.encoding import Step
from spfemu.replay.table import read_table
from spfemu.trace.calls import Call

DATA = Path(__file__).resolve().parents[1] / "trace" / "data"
QUICK = {"seconds": 0.2, "warmup": 0.01, "repeats": 1, "seed": 7}
MAP_4K = "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)


@pytest.fixture
def read(tmp_path):
    """Make a table of lines."""

    def make(*lines):
        path = tmp_path / "t.trace"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return read_table(str(path))

    return make


def sample(recording, **given):
    """Take one sample; the checks of the segment must find nothing."""
    plan = Plan("trace", trace=recording, workers=len(recording.threads), **{**QUICK, **given})
    segments = run.Segments()
    taken = run.take_sample(run.prepare(plan), segments)
    segments.close()
    assert taken.violations == []
    return taken


def test_calls_go_where_they_went(read):
    (thread,) = read(
        f"1 1.5 {MAP_4K} = 0x10000",
        "1 2.5 mremap(0x10000, 4096, 8192, MREMAP_MAYMOVE) = 0x10000",
        "1 2.5 mremap(0x10000, 8192, 16384, MREMAP_MAYMOVE) = 0x50000",
        "1 3.5 munmap(0x50000, 4096) = -1 EINVAL (Invalid argument)",
        "1 4.5 munmap(0x50000, 16384) = 0",
    ).threads

    assert thread == (
        [Call.MMAP, 0x10000, 4096, int(Prot.READ | Prot.WRITE), FIXED, 0, 0, 0],
        [Call.MREMAP, 0x10000, 4096, 8192, 0, 0, 0, 0],
        [Call.MREMAP, 0x10000, 8192, 16384, int(Mremap.MAYMOVE | Mremap.FIXED), 0x50000, 0, 0],
        [Call.MUNMAP, 0x50000, 16384, 0, 0, 0, 0, 0],
    )


def test_the_heap_begins_where_the_first_brk_says(read):
    (thread,) = read("1 brk(NULL) = 0x602123", "1 brk(0x604000) = 0x604000").threads

    assert thread == (
        [Step.SET_BRK, 0x602123, 0, 0, 0, 0, 0, 0],
        [Call.BRK, 0x602123, 0x603000, 0, 0, 0, 0, 0],
        [Call.BRK, 0x604000, 0x603000, 0x1000, 0, 0, 0, 0],
    )


def test_the_process_with_the_most_threads_is_taken_and_its_time(read):
    found = read(
        f"1 1.5 {MAP_4K} = 0x10000",
        f"1 1.5 {MAP_4K} = 0x20000",
        f"1 1.5 {MAP_4K} = 0x30000",
        "1 1.5 fork() = 2",
        "2 2000000000.5 brk(NULL) = 0x1000",
        "2 2000000001.0 clone(child_stack=0x7f, flags=CLONE_VM) = 3",
        "2 2000000001.0 clone(child_stack=0x7f, flags=CLONE_VM) = 4",
        f"3 2000000002.0 {MAP_4K} = 0x10000",
        "3 2000000002.5 +++ exited with 0 +++",
    )

    assert (found.pid, found.calls, found.forks) == (2, 2, 0)
    assert found.recorded_seconds == 2.0
    # thread 4 does nothing, so it is none
    assert [[e[0] for e in thread] for thread in found.threads] == [
        [Step.SET_BRK, Call.BRK, Step.START],
        [Call.MMAP],
    ]


def test_a_thread_that_shows_up_early_is_begun_by_its_maker(read):
    found = read(
        "1 clone(child_stack=0x7f, flags=CLONE_VM <unfinished ...>",
        f"2 {MAP_4K} = 0x10000",
        "1 <... clone resumed>) = 2",
        "1 brk(NULL) = 0x1000",
    )

    assert [[e[0] for e in thread] for thread in found.threads] == [
        [Step.START, Step.SET_BRK, Call.BRK],
        [Call.MMAP],
    ]
    assert found.threads[0][0][1] == 1


def test_what_cannot_be_measured(read, monkeypatch):
    with pytest.raises(UsageError, match=r"nothing to measure: .*:1: this is no output"):
        read("rubbish")
    with pytest.raises(UsageError, match="there is no call on memory in it"):
        read("1 exit_group(0) = ?")
    monkeypatch.setattr(table, "ENTRIES_MAX", 2)
    with pytest.raises(UsageError, match="more than 2 calls"):
        read(*[f"1 {MAP_4K} = 0x10000"] * 3)


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.trace")))
def test_recordings_run(name):
    recording = read_table(str(DATA / f"{name}.trace"))
    taken = sample(recording)

    assert taken.operations > 0
    assert taken.faults > 0
    assert taken.events["FAULT_OOM"] == 0
    # one that has a single thread is never speculative
    assert (taken.events["SPF_ATTEMPT"] > 0) == (len(recording.threads) > 1)


@pytest.mark.parametrize("protocol", ["classic", "vma-lock"])
def test_other_protocols(protocol):
    taken = sample(read_table(str(DATA / "threads.trace")), protocol=protocol, pages=2)

    assert taken.operations > 0
    assert taken.events["SPF_ATTEMPT"] == 0


def test_forks_and_all_calls_run(read):
    recording = read(
        "1 brk(NULL) = 0x602123",
        f"1 {MAP_4K} = 0x10000",
        "1 fork() = 2",
        "1 mlock(0x10000, 4096) = 0",
        "1 mlock2(0x10000, 4096, MLOCK_ONFAULT) = 0",
        "1 munlock(0x10000, 4096) = 0",
        "1 mlockall(MCL_FUTURE) = 0",
        "1 munlockall() = 0",
        "1 msync(0x10000, 4096, MS_SYNC) = 0",
        "1 mincore(0x10000, 4096, [1]) = 0",
        "1 madvise(0x10000, 4096, MADV_DONTNEED) = 0",
        "1 mprotect(0x10000, 4096, PROT_READ) = 0",
        "1 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 3</x>, 0x1000) = 0x20000",
        "1 mmap(NULL, 4096, PROT_READ, MAP_SHARED|MAP_ANONYMOUS, -1, 0) = 0x30000",
    )
    taken = sample(recording, seconds=0.1)

    # each call succeeds in each pass
    assert taken.events["CALL_FORK"] > 0
    assert taken.events["CALL_MLOCK"] >= 5 * (taken.events["CALL_FORK"] - 1)
    assert taken.events["CALL_FAILED"] == 0


def test_the_command(tmp_path):
    trace = str(DATA / "sort.trace")
    quick = ("--seconds", "0.1", "--repeats", "2")
    answer = CliRunner().invoke(cli, ["run", "--trace", trace, "--protocol", "classic", *quick])

    assert answer.exit_code == ExitCode.OK
    assert "trace, classic, native engine, threads, 1 worker" in answer.stdout
    *_, first, taken, recorded = answer.stdout.splitlines()
    assert first.startswith("one pass through 46 calls of process ")
    assert taken.split()[0::2] == ["classic", "ms"]
    assert recorded.endswith(" ms, by strace")


def test_protocols_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ("--seconds", "0.05", "--repeats", "2", "--plot", "p.svg")
    answer = CliRunner().invoke(cli, ["scale", "--trace", str(DATA / "xz.trace"), *quick])

    # two rounds are too few to compare
    assert answer.exit_code in (ExitCode.OK, ExitCode.INCONCLUSIVE)
    assert "\ntrace, threads, " in answer.stdout
    assert "one pass through 57 calls" in answer.stdout
    assert Path("spfemu-trace.json").exists()
    assert Path("p.svg").exists()


def test_scale_takes_a_workload_or_a_recording():
    answer = CliRunner().invoke(cli, ["scale", "pft", "--trace", "x"])

    assert answer.exit_code == ExitCode.USAGE
    assert "say what to measure" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to measure: a WORKLOAD, or --trace FILE"),
        (["pft", "--trace", "x"], "say what to measure: a WORKLOAD, or --trace FILE"),
        (["--trace", "x", "--workers", "2"], "--workers means nothing with --trace"),
        (["--trace", "nowhere"], "cannot read nowhere: No such file"),
        (["trace"], "spfemu run --trace FILE"),
        (["--trace", str(DATA / "sort.trace"), "--protocol", "bare"], "use another protocol"),
    ],
)
def test_what_cannot_mean_anything(arguments, message):
    answer = CliRunner().invoke(cli, ["run", *arguments])

    assert answer.exit_code == ExitCode.USAGE
    assert message in answer.stderr
