# SPDX-License-Identifier: MIT
"""Programs: made, kept, shown, shortened, compared."""

import numpy as np
import pytest

from spfemu.errors import UsageError
from spfemu.fidelity import known, program
from spfemu.fidelity.compare import Names, decode, first_difference
from spfemu.fidelity.generate import Generator
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.pair import Streams
from spfemu.fidelity.program import UNMAP_ALL, WINDOW_PAGES, Operation, Window
from spfemu.fidelity.shrink import complexity, shrink, simplifications, without_page
from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import Map, Prot

FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
BASES = {
    Window.ABSOLUTE: 0,
    Window.LOW: 1 << 16,
    Window.HEAP: 1 << 32,
    Window.ARENA: 1 << 44,
    Window.TOP: (1 << 46) - WINDOW_PAGES[Window.TOP] * PAGE_SIZE,
}


# Random programs


def test_a_generator_makes_the_same_programs_again():
    first, second, other = Generator(7), Generator(7), Generator(8)
    assert [first.program(i) for i in range(20)] == [second.program(i) for i in range(20)]
    assert first.program(3) != other.program(3)


def test_random_programs_are_safe():
    generator = Generator(1)
    for number in range(1000):
        for operation in generator.program(number):
            assert program.unsafe(operation) == "", program.statement(operation)


def test_known_differences_are_left_out():
    differences = (
        known.COMMIT_LIMIT,
        known.RECLAIM,
        known.EXECUTE_ONLY,
        known.ADDRESS_SPACE,
        known.PMD_ALIGNMENT,
    )
    plain, careful = Generator(1), Generator(1, differences)
    for difference in differences:
        concerned = [
            any(difference.concerns(o) for n in range(500) for o in generator.program(n))
            for generator in (plain, careful)
        ]
        assert concerned == [True, False], difference.name


@pytest.mark.parametrize(
    ("machine_has_keys", "version", "expected"),
    [
        (False, 0x612, set()),
        (True, 0x612, {"execute-only memory"}),
        (False, 0x608, {"huge-page alignment"}),
        (False, 0x606, set()),
    ],
)
def test_known_differences_depend_on_the_machine(machine_has_keys, version, expected, monkeypatch):
    monkeypatch.setattr(known, "host_version", lambda: version)
    monkeypatch.setattr(known, "_has_execute_only", lambda: machine_has_keys)

    found = {d.name for d in known.differences(same_task_size=True)}
    other = {d.name for d in known.differences(same_task_size=False)}

    everywhere = {"commit limit", "reclaim"}
    assert found == everywhere | expected
    assert other == everywhere | expected | {"address space"}


@pytest.mark.parametrize(
    ("release", "version"), [("6.18.44-x", 0x612), ("5.12.0", 0x50C), ("10.1-rc3", 0xA01)]
)
def test_the_version_of_the_kernel(release, version, monkeypatch):
    monkeypatch.setattr("platform.release", lambda: release)
    assert known.host_version() == version
    assert known.followed_version() == min(version, known.NEWEST)


@pytest.mark.parametrize("release", ["5.11.22", "plan9"])
def test_a_kernel_that_is_too_old_is_refused(release, monkeypatch):
    monkeypatch.setattr("platform.release", lambda: release)
    with pytest.raises(known.ResourceError, match=release):
        known.followed_version()


# Files and listings


def test_a_program_comes_back_from_its_file(tmp_path):
    operations = [o for n in range(20) for o in Generator(3).program(n)]
    path = tmp_path / "program"
    path.write_bytes(program.encode([*operations, UNMAP_ALL], "a note"))
    assert program.load(path) == [*operations, UNMAP_ALL]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe", "holds no program"),
        (b'{"format":"spfemu-program-1","note":"","operations":[', "holds no program"),
        (b'{"format":"other","note":"","operations":[]}', "format 'other'"),
        (b'{"format":"spfemu-program-1","note":"","operations":[]}', "must have 1 to"),
    ],
)
def test_what_is_no_program_is_refused(content, reason, tmp_path):
    path = tmp_path / "program"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        program.load(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"call":"vfork"}', "operation 1: no call 'vfork'"),
        ('{"call":"munmap","window":"moon"}', "holds no program"),
        ('{"call":"munmap","address":4096,"length":4096}', "no impossible address"),
        ('{"call":"munmap","window":"arena","length":9999999}', "out of its window"),
        ('{"call":"munmap","window":"top","address":-4096,"length":4096}', "out of its window"),
        ('{"call":"write","window":"low","address":99999999}', "out of its window"),
        ('{"call":"read","address":140737488281600}', "no impossible address"),
        ('{"call":"mprotect","window":"top","length":140737488281600}', "out of its window"),
        ('{"call":"mmap","window":"arena","length":4096,"flags":40}', "does not have these"),
        ('{"call":"mmap","window":"arena","length":4096,"flags":1,"file":4}', "no such file"),
        ('{"call":"ftruncate","length":4096}', "needs a file"),
        ('{"call":"ftruncate","length":1048576,"file":1}', "too long"),
        ('{"call":"pwrite","offset":1048576,"file":1}', "too long"),
        ('{"call":"pwrite","offset":4,"file":1}', "a whole word"),
        ('{"call":"pwrite","offset":-8,"file":1}', "a whole word"),
        ('{"call":"mmap","length":4096,"flags":262178}', "does not have these"),
        ('{"call":"munmap","window":"arena","length":99999999999999999999}', "64 bits"),
        ('{"call":"write","window":"arena","value":9223372036854775808}', "64 bits"),
    ],
)
def test_an_operation_that_could_do_harm_is_refused(line, reason, tmp_path):
    path = tmp_path / "program"
    path.write_text('{"format":"spfemu-program-1","note":"","operations":[' + line + "]}")
    with pytest.raises(UsageError, match=reason):
        program.load(path)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        program.load(tmp_path / "nothing")


def test_a_listing_is_c():
    operations = [
        Operation(Kind.MMAP, Window.ARENA, 0x3000, 0x2000, prot=2, flags=FIXED),
        Operation(Kind.MMAP, length=0x1000, prot=0, flags=0x22),
        Operation(Kind.MPROTECT, Window.TOP, 0, 5, prot=0x14),
        Operation(Kind.MADVISE, Window.LOW, 0, -1, value=4),
        Operation(Kind.MADVISE, Window.LOW, 0, 0, value=-1),
        Operation(Kind.BRK, Window.HEAP, 0x1000),
        Operation(Kind.MUNMAP, address=1 << 63, length=1),
        Operation(Kind.READ, Window.ARENA, 8),
        Operation(Kind.WRITE, Window.ARENA, 8, value=0xABC),
        Operation(Kind.MMAP, Window.ARENA, 0, 5, prot=1, flags=0x11, file=2, offset=0x3000),
        Operation(Kind.FTRUNCATE, length=0x800, file=1),
        Operation(Kind.PWRITE, file=3, offset=8, value=7),
        Operation(Kind.MSYNC, Window.TOP, 0, 5, value=4),
        Operation(Kind.MSYNC, Window.TOP, 0, 5),
        Operation(Kind.FORK),
        Operation(Kind.SWITCH),
        Operation(Kind.EXIT),
        UNMAP_ALL,
    ]
    lines = program.listing(operations, ["arena + 0x3000"], "a note").splitlines()
    code = [line.partition("  /*")[0].rstrip() for line in lines[5:]]
    assert lines[0] == "/* a note */"
    assert lines[5].endswith("/* arena + 0x3000 */")
    assert code == [
        "mmap(arena + 0x3000, 0x2000, PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);",
        "mmap(NULL, 0x1000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);",
        "mprotect(top, 5, PROT_EXEC | 0x10);",
        "madvise(low, 0xffffffffffffffff, MADV_DONTNEED);",
        "madvise(low, 0, -1);",
        "syscall(SYS_brk, heap + 0x1000);",
        "munmap(0x8000000000000000, 1);",
        "(void)*(volatile long *)(arena + 8);",
        "*(volatile long *)(arena + 8) = 0xabc;",
        "mmap(arena, 5, PROT_READ, MAP_SHARED | MAP_FIXED, file2, 0x3000);",
        "ftruncate(file1, 0x800);",
        "pwrite(file3, &(long){7}, 8, 8);",
        "msync(top, 5, MS_SYNC);",
        "msync(top, 5, 0);",
        "fork_and_go_on_as_parent();",
        "let_the_other_process_go_on();",
        "end_the_child();",
        "unmap_everything();",
    ]


# Shrinking


def judge_by(culprits):
    """Return a judge that finds a difference after the last of `culprits`, in their order."""

    def judge(operations):
        left = list(culprits)
        for index, operation in enumerate(operations):
            if left and left[0](operation):
                left.pop(0)
                if not left:
                    return index
        return None

    return judge


CULPRITS = [
    lambda o: o.kind is Kind.MMAP and o.prot & Prot.WRITE,
    lambda o: o.kind is Kind.MUNMAP and o.length >= PAGE_SIZE,
]


def a_long_program():
    return [o for n in range(8) for o in Generator(5).program(n)]


def test_shrinking_finds_the_shortest_and_simplest():
    small = shrink(a_long_program(), judge_by(CULPRITS))
    assert [o.kind for o in small] == [Kind.MMAP, Kind.MUNMAP]
    assert small[0].prot == Prot.READ | Prot.WRITE or small[0].prot == Prot.WRITE
    assert small[1].length == PAGE_SIZE
    assert all(o.window is Window.ARENA and o.address == 0 for o in small)


def test_shrinking_is_deterministic():
    assert shrink(a_long_program(), judge_by(CULPRITS)) == shrink(
        a_long_program(), judge_by(CULPRITS)
    )


def test_shrinking_tries_safe_programs_only():
    def judge(operations):
        for operation in operations:
            assert program.unsafe(operation) == "", program.statement(operation)
        return judge_by(CULPRITS)(operations)

    shrink(a_long_program(), judge)


def test_what_does_not_differ_is_not_shrunk():
    with pytest.raises(ValueError, match="agree"):
        shrink(a_long_program(), lambda operations: None)


def test_simplifications_are_simpler():
    for number in range(50):
        for operation in Generator(2).program(number):
            for simpler in simplifications(operation):
                assert complexity(simpler) < complexity(operation)
                assert simpler.kind is operation.kind


@pytest.mark.parametrize(
    ("window", "page", "before", "after"),
    [
        (Window.ARENA, 1, (3, 2), (2, 2)),  # below: moves down
        (Window.ARENA, 3, (3, 2), (3, 1)),  # inside: one page less
        (Window.ARENA, 3, (3, 1), (3, 1)),  # all of it: stays
        (Window.ARENA, 5, (3, 2), (3, 2)),  # above: nothing
        (Window.ARENA, 3, (3, 0), (3, 0)),  # a touch of that page
        (Window.TOP, 5, (3, 2), (4, 2)),  # the end stays, so what is below moves up
        (Window.TOP, 4, (3, 2), (4, 1)),
        (Window.TOP, 3, (3, 1), (3, 1)),
        (Window.TOP, 2, (3, 2), (3, 2)),
        (Window.TOP, 3, (3, 0), (3, 0)),
    ],
)
def test_a_page_is_taken_out(window, page, before, after):
    def operation(first, pages):
        return Operation(Kind.MUNMAP, window, first * PAGE_SIZE, pages * PAGE_SIZE)

    assert without_page(operation(*before), window, page) == operation(*after)
    assert without_page(operation(*before), Window.LOW, page) == operation(*before)


# Comparing


def record(result, value, faults, vmas=(), pages=()):
    lists = [word for entry in (*vmas, *pages) for word in entry]
    return [result, value, faults, len(vmas), len(pages), *lists]


ARENA = BASES[Window.ARENA]
VMA = (ARENA, ARENA + 2 * PAGE_SIZE, 11, 0)
AN_MMAP = Operation(Kind.MMAP, Window.ARENA, 0, 2 * PAGE_SIZE, prot=3, flags=FIXED)
A_READ = Operation(Kind.READ, Window.ARENA)
SAME = record(ARENA, 0, 0, [VMA])


def difference(host, emulated, stopped="", operation=A_READ):
    streams = Streams(
        [AN_MMAP, operation, UNMAP_ALL],
        np.array([*SAME, *host], dtype=np.int64),
        np.array([*SAME, *emulated], dtype=np.int64),
        stopped,
    )
    return first_difference(streams, BASES)


def test_a_stream_is_taken_apart():
    page = (ARENA, 5, 6, 0)
    stream = np.array([*SAME, *record(0, 7, 1, [VMA], [page])], dtype=np.int64)
    first, second = decode(stream)
    assert first.vmas == (VMA,)
    assert first.pages == ()
    assert (second.result, second.value, second.faults) == (0, 7, 1)
    assert second.vmas == (VMA,)
    assert second.pages == (page,)


def test_equal_streams_do_not_differ():
    assert difference(record(0, 1, 1), record(0, 1, 1)) is None


@pytest.mark.parametrize(
    ("host", "emulated", "aspect", "texts"),
    [
        (record(0, 1, 0), record(-14, 0, 0), "result", ("EFAULT", "0x1")),
        (record(0, 1, 0), record(0, 2, 0), "result", ("0x2", "0x1")),
        (record(0, 1, 1), record(0, 1, 2), "minor faults", ("2", "1")),
        (
            record(0, 1, 0, [VMA]),
            record(0, 1, 0, [(ARENA, ARENA + PAGE_SIZE, 11, 0)]),
            "mappings",
            ("arena to arena + 0x1000 rw-p", "arena to arena + 0x2000 rw-p"),
        ),
        (
            record(0, 1, 0, [(ARENA, ARENA + PAGE_SIZE, 17, 0)]),
            record(0, 1, 0, [(ARENA, ARENA + PAGE_SIZE, 17, PAGE_SIZE)]),
            "mappings",
            (
                "arena to arena + 0x1000 r--s of a file from 0x1000 on",
                "arena to arena + 0x1000 r--s of a file from 0 on",
            ),
        ),
        (
            record(0, 1, 0, [VMA], [(ARENA, 1, 1, 0)]),
            record(0, 1, 0, [VMA]),
            "present pages",
            ("none", "arena"),
        ),
        (
            record(0, 1, 0, [VMA], [(ARENA, 1, 2, 0)]),
            record(0, 1, 0, [VMA], [(ARENA, 1, 3, 0)]),
            "contents",
            ("arena: 0x1, digest 0x3", "arena: 0x1, digest 0x2"),
        ),
    ],
)
def test_the_first_difference_is_described(host, emulated, aspect, texts):
    found = difference(host, emulated)
    assert found is not None
    assert found.index == 1
    assert found.aspect == aspect
    assert (found.emulated, found.host) == texts


def test_an_emulator_that_stops_is_a_difference():
    found = difference(record(0, 1, 0), [], "stopped at TABLE_MISSING")
    assert found is not None
    assert (found.index, found.aspect) == (1, "emulator")
    assert found.emulated == "stopped at TABLE_MISSING"
    assert found.host == "returned 0x1"


def test_addresses_are_named_by_their_window():
    names = Names(BASES)
    assert names(ARENA) == "arena"
    assert names(ARENA + 40 * PAGE_SIZE) == "arena + 0x28000"
    assert names(BASES[Window.TOP] - PAGE_SIZE) == "top - 0x1000"
    assert names(0x1234) == "0x1234"
