# SPDX-License-Identifier: MIT
"""Short traces, replayed: processes, threads, errors, limits."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spfemu.cli.app import cli
from spfemu.cli.replay import SCHEMA
from spfemu.errors import ExitCode
from spfemu.mm.config import CONFIG_LINUX_VERSION
from spfemu.replay.machine import Machine
from spfemu.replay.outcome import Outcome
from spfemu.replay.player import Player
from spfemu.replay.run import compiled, replay
from spfemu.segment import Geometry, Segment
from spfemu.trace.calls import Call, MemoryCall
from spfemu.trace.maps import Mapping

MAP_4K = "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"


@pytest.fixture
def play(tmp_path):
    """Replay lines; returns the outcome."""

    def run(*lines, touch="once", workers=None, initial=()):
        path = tmp_path / "t.trace"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return replay(
            str(path), "spf", touch=touch, workers=workers, initial=initial, overrides=(),
            progress=lambda *_: None,
        )  # fmt: skip

    return run


def spans(outcome):
    """Where mappings are at the end, by pid."""
    return {f.pid: [(m.start, m.end) for m in f.mappings] for f in outcome.finals}


def test_a_fork_has_a_copy(play):
    outcome = play(
        f"1 {MAP_4K} = 0x10000",
        "1 fork() = 2",
        "2 munmap(0x10000, 4096) = 0",
        f"2 {MAP_4K} = 0x30000",
        "2 +++ exited with 0 +++",
    )

    assert spans(outcome) == {2: [(0x30000, 0x31000)], 1: [(0x10000, 0x11000)]}
    assert (outcome.processes, outcome.threads) == (2, 2)
    assert outcome.events["WP_COPY"] == 0
    assert outcome.violations == []


def test_a_thread_shares(play):
    outcome = play(
        f"1 {MAP_4K} = 0x10000",
        "1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD) = 2",
        "2 munmap(0x10000, 4096) = 0",
        f"1 {MAP_4K} = 0x30000",
        f"2 {MAP_4K} = 0x20000",
        "1 +++ exited with 0 +++",
        "2 +++ exited with 0 +++",
    )

    assert spans(outcome) == {1: [(0x20000, 0x21000), (0x30000, 0x31000)]}
    assert (outcome.processes, outcome.threads) == (1, 2)
    # with two threads faults are tried without the lock
    assert outcome.attempts == 2


@pytest.mark.parametrize("begun", ["clone(flags=CLONE_VM", "vfork("])
def test_a_child_may_show_up_before_its_parents_call_returns(play, begun):
    outcome = play(
        f"1 {MAP_4K} = 0x10000",
        f"1 {begun} <unfinished ...>",
        f"2 {MAP_4K} = 0x20000",
        f"1 <... {begun.split('(')[0]} resumed>) = 2",
    )

    assert spans(outcome) == {1: [(0x10000, 0x11000), (0x20000, 0x21000)]}


def test_with_two_possible_parents_it_waits(play):
    outcome = play(
        f"1 {MAP_4K} = 0x10000",
        "1 fork() = 2",
        "1 fork( <unfinished ...>",
        "2 fork( <unfinished ...>",
        f"3 {MAP_4K} = 0x20000",
        f"4 {MAP_4K} = 0x30000",
        "2 <... fork resumed>) = 3",
        "1 <... fork resumed>) = 4",
    )

    assert sorted(spans(outcome)) == [1, 2, 3, 4]
    assert spans(outcome)[3] == [(0x10000, 0x11000), (0x20000, 0x21000)]
    assert outcome.processes == 4


def test_exec_begins_afresh_with_the_map_of_the_recording(play):
    outcome = play(
        f"1 {MAP_4K} = 0x10000",
        '1 execve("/bin/x", ["x"], 0x7f /* 20 vars */) = 0',
        "# maps 1 initial",
        "00400000-00401000 r-xp 00001000 fe:00 42     /bin/x",
        "7ffff7ff9000-7ffff7ffd000 r--p 00000000 00:00 0 [vvar]",
        "7ffff7ffd000-7ffff7fff000 r--p 00000000 00:00 0 [vvar_vclock]",
        "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]",
        "# end",
        "1 brk(NULL) = 0x602123",
        "1 brk(0x623000) = 0x623000",
        "# maps 1 final",
        "00400000-00401000 r-xp 00001000 fe:00 42     /bin/x",
        "00603000-00623000 rw-p 00000000 00:00 0 [heap]",
        "7ffff7ff9000-7ffff7ffd000 r--p 00000000 00:00 0 [vvar]",
        "7ffff7ffd000-7ffff7fff000 r--p 00000000 00:00 0 [vvar_vclock]",
        "7fffffff0000-7ffffffff000 rw-p 00000000 00:00 0 [stack]",
        "# end",
        "1 exit_group(0) = ?",
    )

    first, second = outcome.finals
    assert [m.start for m in first.mappings] == [0x10000]
    # what is mapped below the recorded start of the stack does not shrink
    assert second.difference.lines() == [
        "+ 7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]",
        "- 7fffffff0000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]",
    ]
    assert str(second.mappings[0]).split()[2:] == ["00001000", "fe:00", "42", "/bin/x"]
    assert [m.name for m in second.mappings[1:]] == ["[heap]", "[vvar]", "[vvar_vclock]", "[stack]"]


def test_a_stack_grows_to_where_it_was_at_the_end(play):
    stack = "7ffffffff000 rw-p 00000000 00:00 0 [stack]"
    outcome = play(
        '1 execve("/bin/x", ["x"], 0x7f /* 20 vars */) = 0',
        "# maps 1 initial",
        f"7ffffffde000-{stack}",
        "# end",
        f"1 {MAP_4K} = 0x7f0000000000",
        "# maps 1 final",
        "7f0000000000-7f0000001000 rw-p 00000000 00:00 0",
        f"7fffffd00000-{stack}",
        "# end",
    )

    assert len(outcome.compared) == 1
    assert outcome.disagreeing == []
    assert outcome.events["STACK_GROWN"] == 1


def test_a_map_may_be_given_for_a_trace_that_has_none(play):
    text = "1 mprotect(0x400000, 4096, PROT_READ) = 0"
    mapping = Mapping(0x400000, 0x401000, 3, shared=False, name="/bin/x", inode=1)

    assert play(text).different == {"mprotect": 1}
    outcome = play(text, initial=(mapping,))
    assert outcome.different == {}
    assert outcome.finals[0].mappings[0].prot == 1


def test_other_results_are_told_and_undone(play):
    outcome = play(
        f"1 {MAP_4K} = -1 ENOMEM (Cannot allocate memory)",
        "1 munmap(0x10000, 4096) = -1 EINVAL (Invalid argument)",
        "1 madvise(0x10000, 4096, MADV_DONTNEED) = -1 ENOMEM (Cannot allocate memory)",
        "1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</x>, 0) = -1 EACCES (Permission denied)",
        f"1 {MAP_4K} = 0x10000",
    )

    assert outcome.different == {"mmap": 1, "munmap": 1}
    assert outcome.differences[1] == (
        "line 2: munmap returned EINVAL when it was recorded, and 0 now"
    )
    assert outcome.failed == {"madvise": 1}
    assert outcome.skipped == {"mmap of a file that failed": 1}
    assert spans(outcome) == {1: [(0x10000, 0x11000)]}


def test_files_and_shared_memory_keep_mappings_apart(play):
    at = "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</{}>, {}) = {}"
    outcome = play(
        "1 " + at.format("a", 0, "0x10000"),
        "1 " + at.format("a", "0x1000", "0x11000"),
        "1 " + at.format("b", "0x2000", "0x12000"),
        "1 mmap(NULL, 4096, PROT_READ, MAP_SHARED|MAP_ANONYMOUS, -1, 0) = 0x20000",
        touch="none",
    )

    a, b, shared = outcome.finals[0].mappings
    assert (a.start, a.end, a.name, a.offset) == (0x10000, 0x12000, "/a", 0)
    assert (b.name, b.offset) == ("/b", 0x2000)
    assert (shared.shared, shared.name) == (True, "")


def test_untouched_memory_needs_no_frames(play):
    big = 1 << 45
    outcome = play(
        f"1 mmap(NULL, {big}, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x10000",
        f"1 mprotect(0x10000, {big >> 1}, PROT_READ) = 0",
    )

    assert outcome.different == {}
    assert outcome.touch_failed == 0


# The command.


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command on lines, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(text, *options):
        Path("t.trace").write_text(text, encoding="utf-8")
        return CliRunner().invoke(cli, ["replay", "t.trace", *options])

    return run


def test_the_map_and_a_summary_are_printed(command):
    answer = command(f"1 {MAP_4K} = 0x10000\n")

    assert answer.exit_code == ExitCode.OK
    lines = answer.stdout.splitlines()
    assert lines[0] == "00010000-00011000 rw-p 00000000 00:00 0 "
    assert lines[1].startswith("replayed 1 call of 1 process and 1 thread in ")
    assert lines[3].split() == ["mmap", "1", "0", "0"]
    assert lines[-1] == "spf: 1 fault, none tried without the mmap lock"


def test_lines_that_cannot_be_used_are_told_and_the_rest_counts(command):
    answer = command(f"1 {MAP_4K} = 0x10000\nrubbish\n1 munm")

    assert answer.exit_code == ExitCode.INCONCLUSIVE
    assert "replayed 1 call" in answer.stdout
    assert answer.stderr == (
        "t.trace:2: this is no output of strace: 'rubbish'\nt.trace:3: the line is cut\n"
    )


@pytest.mark.parametrize("text", ["", "rubbish\n", "\x7fELF"])
def test_nothing_to_replay(command, text):
    answer = command(text)

    assert answer.exit_code == ExitCode.USAGE
    assert answer.stderr.startswith("spfemu: nothing to replay: t.trace")


def test_a_map_that_differs_is_a_violation(command):
    answer = command(f"1 {MAP_4K} = 0x10000\n# maps 1 final\n# end\n", "--final-maps", "maps")

    assert answer.exit_code == ExitCode.VIOLATION
    assert "final maps: 0 of 1 are the recorded ones" in answer.stdout
    assert "+ 00010000-00011000 rw-p" in answer.stdout
    assert Path("maps").read_text() == "00010000-00011000 rw-p 00000000 00:00 0 \n"


def test_json_and_protocols(command):
    answer = command(
        f"1 {MAP_4K} = 0x10000\n", "--json", "-", "--protocol", "spf,classic", "--touch", "all"
    )

    report = json.loads(answer.stdout)
    assert report["schema"] == SCHEMA
    assert [r["protocol"] for r in report["replays"]] == ["spf", "classic"]
    assert report["replays"][0]["calls"] == {"mmap": 1}
    assert "replayed 1 call" in answer.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "bare"], "nothing to replay"),
        (["--protocol", "spff"], "did you mean 'spf'?"),
        (["--workers", "0"], "workers must be from 1 to 512"),
        (["--initial-maps", "nowhere"], "cannot read nowhere: No such file"),
        (["--initial-maps", "t.trace"], "t.trace:1: this is no line of /proc/PID/maps"),
    ],
)
def test_what_cannot_mean_anything(command, options, message):
    answer = command(f"1 {MAP_4K} = 0x10000\n", *options)

    assert answer.exit_code == ExitCode.USAGE
    assert message in answer.stderr


def test_a_pipe_is_refused(command):
    answer = CliRunner().invoke(cli, ["replay", "/dev/stdin"])

    assert answer.exit_code == ExitCode.USAGE
    assert "it is read twice" in answer.stderr


# No address in a trace reaches memory outside the segment.

WORDS = st.integers(-(1 << 63), (1 << 63) - 1)
NEAR = st.builds(
    lambda page, rest: (page << 12) + rest, st.integers(0, 40), st.sampled_from([0, 0, 0, 1, 4095])
)
EDGES = st.sampled_from(
    [0, -1, -4096, 1 << 47, (1 << 47) - 4096, (1 << 47) - 8192, 1 << 46, (1 << 63) - 1, 0x10000]
)
NUMBERS = NEAR | EDGES | WORDS
CALLS = st.builds(
    lambda call, numbers, flags, result, path: MemoryCall(
        1, 1, None, call, _arguments(call, numbers, flags), result, path, 0
    ),
    st.sampled_from(sorted(Call)),
    st.lists(NUMBERS, min_size=5, max_size=5),
    st.integers(0, (1 << 32) - 1) | st.sampled_from([0x22, 0x32, 0x21, 3, 1, 4]),
    st.none() | NEAR | st.integers(-50, 0),
    st.none() | st.just("/x"),
)
COUNTS = {
    Call.MMAP: 4,
    Call.MREMAP: 5,
    Call.BRK: 1,
    Call.MLOCKALL: 1,
    Call.MUNLOCKALL: 0,
    **dict.fromkeys([Call.MPROTECT, Call.MADVISE, Call.MLOCK2, Call.MSYNC], 3),
}


def _arguments(call, numbers, flags):
    arguments = numbers[: COUNTS.get(call, 2)]
    if len(arguments) >= 3 and call is not Call.MREMAP:
        arguments[2] = flags & 0x1F
    if call in (Call.MMAP, Call.MREMAP):
        arguments[3] = flags
    if call is Call.MLOCKALL:
        arguments[0] = flags & 7
    return tuple(arguments)


NEARLY_ALL = ((1 << 63) - 1, (1 << 63) - 2, 1, 0x21)
"""A length that becomes negative when it is rounded up to whole pages."""


@example([MemoryCall(1, 1, None, Call.MMAP, NEARLY_ALL, 49151, "/x", 0)], "once")
@settings(deadline=None, max_examples=150)
@given(st.lists(CALLS, max_size=12), st.sampled_from(["none", "once"]))
def test_whatever_the_calls_are_the_machine_stays_whole(calls, touch):
    segment = Segment.create(Geometry(nr_frames=1024, nr_vmas=512, nr_spare_mms=2))
    try:
        engine = compiled("spf", (), CONFIG_LINUX_VERSION)
        player = Player(Machine(engine, segment), Outcome("spf"), touch, ())
        reader = NoReader()
        for call in calls:
            player.event(call, reader)
        player.finish()
        assert player.machine.finish() == []
    finally:
        segment.close()


class NoReader:
    def cloning(self):
        return []
