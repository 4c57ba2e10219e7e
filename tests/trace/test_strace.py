# SPDX-License-Identifier: MIT
"""What strace prints, read: each form of a line, and everything that is no such form."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spfemu.mm.flags import Errno, Madv, Map, Prot
from spfemu.trace.calls import Call, MemoryCall
from spfemu.trace.strace import LINE_BYTES, Clone, Exec, Exit, Maps, Reader

READ_WRITE = int(Prot.READ | Prot.WRITE)
ANONYMOUS = int(Map.PRIVATE | Map.ANONYMOUS)
MMAP = "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"


def read(text):
    """Events and problems of a trace."""
    data = text if isinstance(text, bytes) else text.encode()
    reader = Reader(io.BytesIO(data), "t")
    return list(reader), reader


def only(text):
    """The only event of a trace without problems."""
    events, reader = read(text)
    assert reader.problems.texts() == []
    (event,) = events
    return event


def problem(text):
    """The only problem of a line."""
    events, reader = read(text + (b"\n" if isinstance(text, bytes) else "\n"))
    assert events == []
    (line,) = reader.problems.texts()
    return line


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "17 ",
        "17    ",
        "[pid    17] ",
        "17 12:34:56 ",
        "17 12:34:56.123456 ",
        "17 1795533769.664857 ",
        "     0.000123 ",
        "17      0.000123 ",
        "12:34:56.1 (+     0.000100) ",
        "17 [00007f0011223344] ",
        "[   9] ",
    ],
)
@pytest.mark.parametrize("suffix", ["", " <0.000012>", " (DELAYED)"])
def test_whatever_strace_puts_around_a_call(prefix, suffix):
    call = only(f"{prefix}{MMAP} = 0x7f0000001000{suffix}\n")

    assert call.call is Call.MMAP
    assert call.arguments == (0, 8192, READ_WRITE, ANONYMOUS)
    assert call.result == 0x7F0000001000
    assert call.path is None


@pytest.mark.parametrize(
    ("text", "call", "arguments", "result"),
    [
        ("munmap(0x7000, 4096) = 0", Call.MUNMAP, (0x7000, 4096), 0),
        ("mprotect(0x7000, 4096, PROT_NONE)    = 0", Call.MPROTECT, (0x7000, 4096, 0), 0),
        ("pkey_mprotect(0x7000, 4096, PROT_READ, -1) = 0", Call.MPROTECT, (0x7000, 4096, 1), 0),
        ("brk(NULL) = 0x55d000", Call.BRK, (0,), 0x55D000),
        ("brk(0x55e123) = 0x55e123", Call.BRK, (0x55E123,), 0x55E123),
        (
            "mremap(0x7000, 4096, 8192, MREMAP_MAYMOVE) = 0x9000",
            Call.MREMAP,
            (0x7000, 4096, 8192, 1, 0),
            0x9000,
        ),
        (
            "mremap(0x7000, 4096, 4096, MREMAP_MAYMOVE|MREMAP_FIXED, 0x9000) = 0x9000",
            Call.MREMAP,
            (0x7000, 4096, 4096, 3, 0x9000),
            0x9000,
        ),
        (
            "madvise(0x7000, 4096, MADV_DONTNEED) = 0",
            Call.MADVISE,
            (0x7000, 4096, Madv.DONTNEED),
            0,
        ),
        (
            "madvise(0x7000, 4096, 0x2a /* MADV_??? */) = -1 EINVAL (Invalid argument)",
            Call.MADVISE,
            (0x7000, 4096, 42),
            -Errno.EINVAL,
        ),
        ("mlock(0x7000, 1) = -1 ENOMEM (Cannot allocate memory)", Call.MLOCK, (0x7000, 1), -12),
        ("mlock2(0x7000, 1, MLOCK_ONFAULT) = 0", Call.MLOCK2, (0x7000, 1, 1), 0),
        ("munlock(0x7000, 1) = 0", Call.MUNLOCK, (0x7000, 1), 0),
        ("mlockall(MCL_CURRENT|MCL_FUTURE) = 0", Call.MLOCKALL, (3,), 0),
        ("munlockall() = 0", Call.MUNLOCKALL, (), 0),
        ("msync(0x7000, 4096, MS_SYNC) = 0", Call.MSYNC, (0x7000, 4096, 4), 0),
        ("mincore(0x7000, 8192, [1, 0]) = 0", Call.MINCORE, (0x7000, 8192), 0),
        (
            "munmap(0xffffffffffff8000, 4096) = -1 EINVAL (Invalid argument)",
            Call.MUNMAP,
            (-0x8000, 4096),
            -Errno.EINVAL,
        ),
    ],
)
def test_each_call(text, call, arguments, result):
    event = only(f"5 {text}\n")

    assert (event.pid, event.call, event.arguments, event.result) == (5, call, arguments, result)


@pytest.mark.parametrize(
    ("printed", "path"),
    [
        ("3", ""),
        ("3</usr/lib/libc.so.6>", "/usr/lib/libc.so.6"),
        (r"3</tmp/a\x20b\74>", "/tmp/a b<"),
        ("3</memfd:x>(deleted)", "/memfd:x (deleted)"),
        ("3</dev/zero<char 1:5>>", "/dev/zero<char 1:5>"),
    ],
)
def test_the_file_of_a_mapping(printed, path):
    call = only(f"mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, {printed}, 0x1000) = 0x7f0000000000\n")

    assert (call.path, call.offset) == (path, 0x1000)


def test_a_call_in_two_parts_counts_where_it_returns():
    events, reader = read(
        "1 mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0 <unfinished ...>\n"
        "2 brk(NULL) = 0x1000\n"
        "1 <... mmap resumed>) = 0x7f0000000000\n"
    )

    assert [(e.pid, e.line, e.call) for e in events] == [(2, 2, Call.BRK), (1, 1, Call.MMAP)]
    assert reader.problems.count == 0


def test_munmap_in_two_parts_counts_where_it_begins():
    events, _ = read(
        "1 munmap(0x7f0000000000, 8192 <unfinished ...>\n"
        f"2 {MMAP} = 0x7f0000000000\n"
        "1 <... munmap resumed>) = 0\n"
    )

    assert [(e.call, e.result) for e in events] == [
        (Call.MUNMAP, None),
        (Call.MMAP, 0x7F0000000000),
    ]


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("fork() = 18", False),
        ("vfork() = 18", True),
        (
            "clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f) = 18",
            False,
        ),
        ("clone(child_stack=0x7f00, flags=CLONE_VM|CLONE_FS|CLONE_THREAD, tls=0x7f) = 18", True),
        (
            "clone3({flags=CLONE_VM|CLONE_FS, stack=0x7f} => {parent_tid=[18]}, 88) = 18",
            True,
        ),
    ],
)
def test_threads_and_processes_that_are_made(text, shares):
    assert only(f"17 {text}\n") == Clone(1, 17, None, 18, shares)


def test_a_clone_that_resumes():
    event = only(
        "17 clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>\n"
        "17 <... clone resumed>, child_tidptr=0x7f) = 18\n"
    )

    assert event == Clone(2, 17, None, 18, shares_mm=False)


def test_exec_and_exit():
    events, reader = read(
        '9 execve("/bin/x", ["x", "a, (b) = \\"c\\""], 0x7ffd /* 39 vars */) = 0\n'
        '9 execve("/nowhere", ["x"], 0x7ffd /* 39 vars */) = -1 ENOENT (No such file)\n'
        "9 --- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=NULL} ---\n"
        "9 exit_group(0) = ?\n"
        "9 +++ killed by SIGSEGV (core dumped) +++\n"
    )

    assert events == [Exec(1, 9, None), Exit(4, 9, None), Exit(5, 9, None)]
    assert reader.signals == {"SIGSEGV": 1}
    assert reader.problems.count == 0


def test_an_exec_of_a_thread_goes_on_under_its_leaders_pid():
    event = only(
        '11 execve("/bin/x", ["x"], 0x7ffd /* 39 vars */ <unfinished ...>\n'
        "10 +++ superseded by execve in pid 11 +++\n"
        "10 <... execve resumed>) = 0\n"
    )

    assert event == Exec(1, 10, None)


def test_without_o_the_first_process_gets_its_pid_late_and_messages_interrupt_lines():
    events, reader = read(
        "brk(NULL) = 0x1000\n"
        "clone(child_stack=NULL, flags=SIGCHLDstrace: Process 8 attached\n"
        ", child_tidptr=0x7f) = 8\n"
        "[pid     7] brk(NULL) = 0x1000\n"
        "[pid     8] brk(NULL) = 0x2000\n"
        "[pid     8] +++ exited with 0 +++\n"
        "brk(NULL) = 0x1000\n"
    )

    assert reader.problems.texts() == []
    assert [e.pid for e in events] == [0, 0, 0, 8, 8, 0]


def test_times_add_up():
    assert read(f"1 23:59:59.5 {MMAP} = 0x1000\n1 00:00:01 {MMAP} = 0x1000\n")[1].seconds == 1.5
    assert read(f"     0.5 {MMAP} = 0x1000\n     0.25 {MMAP} = 0x1000\n")[1].seconds == 0.25
    assert read(f"{MMAP} = 0x1000\n")[1].seconds is None


def test_calls_that_are_not_replayed_are_counted():
    events, reader = read("1 shmat(5, NULL, 0) = 0x7f00\n1 read(3, , 0) = 0\n")

    assert events == []
    assert reader.skipped == {"shmat": 1}


def test_maps_between_the_lines():
    event = only(
        "# maps 7 initial\n"
        "00400000-00401000 r-xp 00001000 fe:00 42                         /bin/x y\n"
        "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0          [vsyscall]\n"
        "# end\n"
    )

    assert isinstance(event, Maps)
    (mapping,) = event.mappings
    assert (event.pid, event.initial, mapping.start) == (7, True, 0x400000)
    assert (mapping.offset, mapping.name, mapping.inode) == (0x1000, "/bin/x y", 42)


# Bad input: one line that says where and what.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"1 {MMAP}", "mmap has no result"),
        ("1 mmap(NULL, 81", "the line is cut"),
        ("1 munmap(0x7000, 4096) =", "munmap has no result"),
        ("1 munmap(0x7000) = 0", "munmap has 1 arguments"),
        ("1 munmap(0x10000000000007000, 4096) = 0", "no number of 64 bits"),
        ("1 munmap(x, 4096) = 0", "no number of 64 bits"),
        ("1 mprotect(0x7000, 4096, PROT_SAO) = 0", "'PROT_SAO' is none of the rights of x86-64"),
        ("1 mmap(NULL, 0, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7000", "not within the 128 TiB"),
        ("1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7001", "which begins no page"),
        ("1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0) = 0x800000000000", "not within"),
        ("1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, x, 0) = 0x7000", "no file descriptor"),
        ("1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, -4096) = 0x7000", "impossible offset"),
        ("1 munmap(0x7000, 4096) = 0x7000", "munmap returned 0x7000, not 0"),
        ("1 munmap(0x7000, 4096) = -1", "failed without an error's name"),
        ("1 brk(NULL) = 0xffff800000000000", "beyond the address space"),
        ("1 mmap2(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7000", "another architecture"),
        ("strace: [ Process PID=7 runs in 32 bit mode. ]", "runs in 32 bit mode"),
        ("1 <... mmap resumed>) = 0x7000", "resumes that never began"),
        ("1 mprotect(0x7000, 4096, PROT_READ <unfinished ...>", "mprotect never returned"),
        ("1 brk(NULL) = ?", "brk never returned"),
        ("hello", "no output of strace: 'hello'"),
        ("99999999 brk(NULL) = 0x1000", "no output of strace"),
        ("4999999 brk(NULL) = 0x1000", "there is no process 4999999"),
        ("1 fork() = 4999999", "there is no process 4999999"),
        (b"\x7fELF\xff\xfe", "this is binary"),
    ],
)
def test_bad_lines(text, message):
    line = problem(text)

    assert line.startswith("t:1: ")
    assert message in line
    assert "\n" not in line


def test_what_is_around_a_bad_line_counts():
    events, reader = read("1 brk(NULL) = 0x1000\nrubbish\n\n1 brk(NULL) = 0x1000\n1 brk(")

    assert len(events) == 2
    assert [p.line for p in reader.problems.kept] == [2, 5]


def test_a_long_line_is_not_kept():
    events, reader = read(b"a" * (3 * LINE_BYTES) + b"\n1 brk(NULL) = 0x1000\n")

    assert [e.line for e in events] == [2]
    assert reader.problems.texts() == [f"t:1: the line is longer than {LINE_BYTES} bytes"]


def test_a_map_that_is_cut_and_bad_lines_in_it():
    events, reader = read(
        "# maps 7 final\n"
        "00402000-00401000 r-xp 00000000 00:00 0\n"
        "rubbish\n"
        "00400000-00402000 r-xp 00000000 00:00 0\n"
        "00401000-00403000 r-xp 00000000 00:00 0\n"
    )

    assert len(events[0].mappings) == 1
    assert [p.line for p in reader.problems.kept] == [5, 2, 3, 5]
    assert "the map is cut" in reader.problems.kept[0].message


def test_many_problems_are_counted():
    _, reader = read("x\n" * 1000)

    assert reader.problems.count == 1000
    assert reader.problems.texts()[-1] == "t: 990 more lines that could not be used"


def test_the_reader_does_not_wait_for_the_end():
    class Endless(io.RawIOBase):
        def readline(self, size=-1):
            return b"1 brk(NULL) = 0x1000\n"

    events = iter(Reader(Endless(), "t"))

    assert [next(events).line for _ in range(1000)] == list(range(1, 1001))


def test_it_reports_how_far_it_is():
    data = b"1 brk(NULL) = 0x1000\n" * 10_000
    told = []
    assert len(list(Reader(io.BytesIO(data), "t", told.append))) == 10_000

    assert told == sorted(set(told))
    assert len(told) == 2
    assert told[-1] <= len(data)


WORDS = st.sampled_from(
    [
        *("mmap(", "munmap(", "brk(", "mremap(", "clone(", "execve(", "exit_group(", "<... "),
        *(" resumed>", " <unfinished ...>", ")", " = ", "0x7f0000000000", "NULL", "4096", ", "),
        *(
            "PROT_READ",
            "|",
            "MAP_PRIVATE",
            "-1",
            "3</x>",
            "?",
            "ENOMEM (x)",
            "\n",
            "1 ",
            "[pid 2] ",
        ),
        *("# maps 1 final\n", "# end\n", "1000-2000 r-xp 0 00:00 0\n", "--- SIGSEGV {} ---", '"'),
        *("+++ exited with 0 +++", "strace: Process 3 attached", "1.5 ", "12:00:00 ", "/*", "{"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS | st.text(max_size=8), max_size=40).map("".join))
def test_whatever_the_text_is_it_is_read_to_the_end(text):
    events, reader = read(text.encode("utf-8", "surrogatepass"))

    for event in events:
        if isinstance(event, MemoryCall):
            assert all(-(1 << 63) <= a < 1 << 63 for a in event.arguments)
            assert event.result is None or -4095 <= event.result < 1 << 47
    assert all("\n" not in line for line in reader.problems.texts())


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=400))
def test_whatever_the_bytes_are(data):
    read(data)


VALID = (
    f"7 1795533769.664857 {MMAP} = 0x7f0000001000\n"
    "8 1795533769.664857 munmap(0x7f0000001000, 8192) = 0\n"
)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(VALID)), st.integers(0, 3), st.text(max_size=3))
def test_a_trace_that_is_cut_or_changed_anywhere(at, removed, inserted):
    events, reader = read(VALID[:at] + inserted + VALID[at + removed :])

    assert len(events) + reader.problems.count >= 1


@pytest.mark.parametrize(
    ("escaped", "name"), [(r"a\40b", "a b"), (r"\x7a", "z"), (r"\8", "8"), ("\\²", "²")]
)
def test_escapes_in_the_name_of_a_file(escaped, name):
    call = only(f"1 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 3</{escaped}>, 0) = 0x1000\n")

    assert call.path == "/" + name


def test_cutting_a_trace_keeps_what_comes_before():
    for at in range(len(VALID)):
        events, reader = read(VALID[:at])
        whole = VALID[:at].count("\n")
        cut = not VALID[:at].endswith("\n") and at > 0
        assert len(events) == whole
        assert [p.line for p in reader.problems.kept] == [whole + 1] * cut
