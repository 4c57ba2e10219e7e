# SPDX-License-Identifier: MIT
"""The emulated kernel against the real one; and that a wrong one is found out."""

import resource

import pytest

from spfemu.errors import UsageError
from spfemu.fidelity import executor, known, pair, program, run
from spfemu.fidelity.compare import Difference, first_difference
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.pair import WITHOUT_MAPPINGS
from spfemu.fidelity.program import Operation, Window
from spfemu.measure.build import protocols
from spfemu.mm import versions
from spfemu.mm.flags import Madv, Map, Mremap, Prot

SEED = 20210430
ENOUGH = 30_000
"""Operations in which each mistake shows many times over."""
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
ANYWHERE = int(Map.PRIVATE | Map.ANONYMOUS)
RW = int(Prot.READ | Prot.WRITE)
PAGE = 4096


def mmap(page, pages, prot, flags=FIXED):
    return Operation(Kind.MMAP, Window.ARENA, page * PAGE, pages * PAGE, prot=prot, flags=flags)


def mprotect(page, pages, prot):
    return Operation(Kind.MPROTECT, Window.ARENA, page * PAGE, pages * PAGE, prot=prot)


def write(page):
    return Operation(Kind.WRITE, Window.ARENA, page * PAGE, value=1)


def brk(pages):
    return Operation(Kind.BRK, Window.HEAP, pages * PAGE)


@pytest.mark.parametrize("protocol", sorted(set(protocols()) - set(WITHOUT_MAPPINGS)))
def test_random_programs_do_what_they_do_on_the_real_kernel(protocol):
    result = run.run_fidelity(operations=10_000, seed=SEED, protocol=protocol)

    assert result.found is None, result.found.listing
    assert result.operations == sum(result.counts.values()) == 10_000
    assert result.operations_per_second > 0
    assert not result.partial
    # they did something
    assert set(result.counts) == {k.name.lower() for k in Kind if k is not Kind.UNMAP_ALL}
    for event in ("VMA_MERGE", "VMA_SPLIT", "ANON_PAGE", "ANON_ZERO_PAGE", "WP_COPY",
                  "PAGES_ZAPPED", "TABLES_FREED", "FAULT_SIGSEGV_ACCERR"):  # fmt: skip
        assert result.events[event] > 10, event
    for event in ("FILE_PAGE", "FILE_COW", "FILE_SHARED", "FILE_AROUND", "FAULT_SIGBUS",
                  "PAGES_TRUNCATED", "CALL_FORK"):  # fmt: skip
        assert result.events[event] > 0, event
    if protocol == "spf":
        assert result.events["SPF_ATTEMPT"] > result.events["SPF_ABORT"] > 0


@pytest.mark.parametrize(
    ("name", "aspects", "most"),
    [
        ("never_split", {"mappings", "present pages", "result"}, 2),
        ("never_merge", {"mappings"}, 2),
        ("keep_pages", {"present pages"}, 3),
        ("dirty_pages", {"contents"}, 2),
        ("needless_faults", {"minor faults"}, 4),
        ("share_writable", {"contents", "result", "minor faults"}, 6),
        ("keep_cut_pages", {"present pages", "contents", "result"}, 4),
    ],
)
def test_a_wrong_kernel_is_found_out_and_the_program_shrunk(name, aspects, most, mistake, tmp_path):
    if name == "needless_faults" and known.host_version() < versions.MPROTECT_MAKES_WRITABLE:
        pytest.skip("this kernel takes these faults")
    overrides = [mistake(name)]

    found = run.run_fidelity(operations=ENOUGH, seed=SEED, overrides=overrides).found

    assert found is not None
    assert found.difference.aspect in aspects
    assert len(found.operations) <= most
    # the file shows it again, and only with the mistake
    path = tmp_path / "program"
    path.write_bytes(found.encode())
    operations = program.load(path)
    assert operations == found.operations
    again = run.replay(operations, overrides=overrides)
    assert again is not None
    assert again.difference.aspect == found.difference.aspect
    assert again.listing == found.listing
    assert run.replay(operations) is None


def test_a_run_repeats(mistake):
    """The same seed finds the same program, whatever addresses the real kernel chooses."""
    overrides = [mistake("keep_pages")]

    first, second = (
        run.run_fidelity(operations=ENOUGH, seed=1, overrides=overrides) for _ in range(2)
    )

    assert first.found is not None
    assert second.found is not None
    assert first.found.encode() == second.found.encode()
    assert first.operations == second.operations


CHANGES = {
    versions.MPROTECT_MAKES_WRITABLE: (
        "minor faults",
        [mmap(0, 1, RW), write(0), mprotect(0, 1, Prot.READ), mprotect(0, 1, RW), write(0)],
    ),
    versions.BRK_NEEDS_A_MAPPING: (
        "result",
        [brk(3), Operation(Kind.MUNMAP, Window.HEAP, 2 * PAGE, PAGE), brk(2)],
    ),
    versions.MPROTECT_DROPS_ACCOUNT: (
        "mappings",
        [mmap(0, 1, Prot.READ), mmap(1, 1, RW), mprotect(1, 1, Prot.READ)],
    ),
    versions.MMAP_ALIGNS_TO_PMD: (
        "result",
        # at most one of two neighbours is aligned without being made to be
        [
            Operation(Kind.MMAP, length=2 << 20, flags=ANYWHERE),
            Operation(Kind.MMAP, length=PAGE, flags=ANYWHERE),
            Operation(Kind.MMAP, length=2 << 20, flags=ANYWHERE),
        ],
    ),
    versions.ANON_VMA_EITHER_WAY: (
        "mappings",
        [mmap(1, 1, Prot.WRITE), mmap(0, 1, RW), write(1), mprotect(1, 1, RW)],
    ),
}


@pytest.mark.parametrize("version", CHANGES, ids=hex)
def test_every_change_of_a_later_kernel_can_be_switched_and_is_noticed(version):
    if known.host_version() < version:
        pytest.skip("this kernel does not have the change")
    aspect, operations = CHANGES[version]

    found = run.replay(operations, config={"CONFIG_LINUX_VERSION": version - 1})

    assert found is not None
    assert found.difference.aspect == aspect
    assert run.replay(operations) is None


LOCKED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED | Map.LOCKED)
DONTUNMAP = int(Mremap.MAYMOVE | Mremap.DONTUNMAP)


def test_a_real_process_that_counts_wrongly_is_replaced():
    """What Linux 6.18 leaves behind of a locked mapping must not decide what later programs do."""
    move = Operation(Kind.MREMAP, Window.ARENA, 0, PAGE, flags=DONTUNMAP, new_length=PAGE)
    with pair.Pair() as both:
        before = both.host.pid
        both.run([mmap(0, 1, RW, LOCKED), move])
        leaks = both.host.locked_bytes() > 0
        if known.host_version() == 0x612:
            assert leaks
        both.renew()
        assert both.host.pid != before
        assert both.host.locked_bytes() == 0
        assert both.run([mmap(0, 1, RW), write(0)]).equal


def test_a_process_is_worn_before_it_meets_the_limit(monkeypatch):
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        pytest.skip("there is no limit")
    with pair.Pair() as both:
        assert not both.is_worn
        monkeypatch.setattr(both.host, "locked_bytes", lambda: limit // 2)
        assert both.is_worn
        pids = []
        run_programs = both.run
        monkeypatch.setattr(
            both, "run", lambda *given: (pids.append(both.host.pid), run_programs(*given))[1]
        )
        run._Session(both, SEED, "spf").run(2 * run.BATCH_OPERATIONS, None, lambda *_: None)
    assert len(set(pids)) > 1


@pytest.mark.parametrize("lock", [Kind.MLOCK, Kind.MUNLOCK])
@pytest.mark.parametrize("length", [-PAGE, -2 * PAGE, -1, 1 << 63, (1 << 63) - PAGE])
def test_lengths_of_locks_that_reach_round_the_address_space(lock, length):
    found = run.replay([mmap(0, 2, RW), Operation(lock, Window.ARENA, PAGE, length)])
    assert found is None, found.listing


def of_file(page, pages, prot, *, file=0, offset=0, shared=False, anonymous=False):
    kind = Map.SHARED if shared else Map.PRIVATE
    flags = int(kind | Map.FIXED | (Map.ANONYMOUS if anonymous else 0))
    return Operation(
        Kind.MMAP, Window.ARENA, page * PAGE, pages * PAGE,
        prot=int(prot), flags=flags, file=file, offset=offset * PAGE,
    )  # fmt: skip


def read(page):
    return Operation(Kind.READ, Window.ARENA, page * PAGE)


FORK, SWITCH, EXIT = (Operation(kind) for kind in (Kind.FORK, Kind.SWITCH, Kind.EXIT))
READ = int(Prot.READ)
PROGRAMS = {
    "faults around begin where the mapping does": [
        of_file(12, 4, READ, file=1),
        Operation(Kind.MLOCK, Window.ARENA, 13 * PAGE, 3 * PAGE),
        of_file(13, 4, READ, file=1),
        read(13),
    ],
    "populating beyond the end is no fault": [
        of_file(0, 4, READ, file=2, offset=1),
        Operation(Kind.MADVISE, Window.ARENA, 3 * PAGE, PAGE, value=int(Madv.POPULATE_READ)),
    ],
    "msync of nearly all addresses": [
        Operation(Kind.MSYNC, Window.ARENA, 0, -PAGE + 4, value=6),
    ],
    "a page that a child has shared is not made writable by mprotect": [
        mmap(0, 1, int(Prot.WRITE)), write(0), FORK, EXIT, mprotect(0, 1, RW), write(0),
    ],
    "a child's writes are its own": [
        mmap(0, 2, RW), write(0), FORK, SWITCH, write(0), write(1), SWITCH, read(0), read(1),
        write(0), SWITCH, read(0), EXIT, write(0),
    ],
    "a child's writes to shared memory are seen": [
        of_file(0, 2, RW, shared=True, anonymous=True), FORK, SWITCH, write(1), SWITCH, read(1),
        write(0), SWITCH, read(0), Operation(Kind.MUNMAP, Window.ARENA, 0, PAGE), SWITCH, read(0),
    ],
    "a private copy does not see the file change": [
        of_file(0, 2, RW, file=1), write(0), read(1),
        Operation(Kind.PWRITE, file=1, value=5),
        Operation(Kind.PWRITE, file=1, offset=PAGE, value=5),
        read(0), read(1),
    ],
    "a file that is cut": [
        of_file(0, 8, RW, file=1), of_file(8, 8, RW, file=1, shared=True), write(3), write(11),
        Operation(Kind.FTRUNCATE, length=3 * PAGE + 100, file=1), read(11), read(3), read(12),
        Operation(Kind.FTRUNCATE, length=8 * PAGE, file=1), read(12), write(12), read(4),
    ],
}  # fmt: skip


@pytest.mark.parametrize("protocol", ["spf", "vma-refcount"])
def test_programs_on_files_and_children(protocol):
    with pair.Pair(protocol) as both:
        for name, operations in PROGRAMS.items():
            streams = both.run(operations)
            assert streams.equal, f"{name}: {first_difference(streams, both.bases)}"


def test_changes_are_all_tried():
    declared = {value for name, value in vars(versions).items() if name.isupper()}
    assert declared == set(CHANGES)
    assert max(declared) <= known.NEWEST


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("never_return", "does not return within 0.5 s"),
        ("failed_assertion", "stopped at the kernel assertion TABLE_MISSING"),
    ],
)
def test_an_emulator_that_stops_is_a_difference(name, how, mistake, monkeypatch):
    monkeypatch.setattr("spfemu.fidelity.pair.HANG_SECONDS", 0.5)
    unaligned = Operation(Kind.MADVISE, Window.ARENA, 1, PAGE, value=int(Madv.DONTNEED))
    program = [mmap(0, 1, RW), write(0), unaligned, write(0)]

    found = run.replay(program, overrides=[mistake(name)])

    assert found is not None
    assert found.difference == Difference(2, "emulator", how, "returned EINVAL")


def test_the_processes_end_with_the_run(monkeypatch):
    started = []
    start = executor.Executor.start

    def note(self):
        start(self)
        started.append(self._process)

    monkeypatch.setattr(executor.Executor, "start", note)

    run.run_fidelity(operations=100, seed=SEED)

    assert len(started) == 2
    assert all(process.exitcode is not None for process in started)


def test_an_interrupted_run_keeps_what_it_has(monkeypatch):
    batch = run._Session._batch

    def interrupted(self, *arguments):
        if self.result.operations:
            raise KeyboardInterrupt
        batch(self, *arguments)

    monkeypatch.setattr(run._Session, "_batch", interrupted)

    result = run.run_fidelity(operations=ENOUGH, seed=SEED)

    assert result.partial
    assert result.operations == run.BATCH_OPERATIONS


def test_a_difference_that_is_gone_is_told(monkeypatch):
    monkeypatch.setattr(run._Session, "_judge", lambda self, operations: None)

    result = run.run_fidelity(
        operations=ENOUGH, seed=SEED, config={"CONFIG_LINUX_VERSION": known.OLDEST}
    )

    if known.host_version() < versions.BRK_NEEDS_A_MAPPING:
        pytest.skip("this kernel does not differ from the oldest")
    assert result.found is None
    assert result.unrepeated
    assert result.operations == ENOUGH


@pytest.mark.parametrize("limit", [{"operations": 0}, {"seconds": -1.0}])
def test_limits_must_be_positive(limit):
    with pytest.raises(UsageError, match="must be more than 0"):
        run.run_fidelity(**limit)


def test_seconds_end_a_run():
    result = run.run_fidelity(seconds=0.2, seed=SEED)

    assert result.operations > 0
    assert result.seconds >= 0.2
