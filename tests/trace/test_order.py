# SPDX-License-Identifier: MIT
"""Overlapping calls of threads, in the order in which they can have taken effect."""

import io

from spfemu.trace.calls import Call
from spfemu.trace.order import in_order
from spfemu.trace.strace import Reader

ANONYMOUS = "PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0"


def order(*lines):
    """Pid and call of each event, as they are to be replayed."""
    reader = Reader(io.BytesIO("".join(f"{line}\n" for line in lines).encode()), "t")
    events = [(e.pid, e.call) for e in in_order(reader)]
    assert reader.problems.texts() == []
    return events


def test_what_is_put_where_a_mapping_is_moved_away_comes_behind_the_move():
    assert order(
        "1 mremap(0x10000, 4096, 8192, MREMAP_MAYMOVE <unfinished ...>",
        f"2 mmap(NULL, 4096, {ANONYMOUS}) = 0x10000",
        "2 munmap(0x20000, 4096) = 0",
        "3 brk(NULL) = 0x1000",
        "1 <... mremap resumed>) = 0x30000",
    ) == [(3, Call.BRK), (1, Call.MREMAP), (2, Call.MMAP), (2, Call.MUNMAP)]


def test_so_does_what_grows_in_place_there():
    assert order(
        "1 mremap(0x11000, 4096, 8192, MREMAP_MAYMOVE <unfinished ...>",
        "2 mremap(0x10000, 4096, 8192, MREMAP_MAYMOVE) = 0x10000",
        "1 <... mremap resumed>) = 0x30000",
    ) == [(1, Call.MREMAP), (2, Call.MREMAP)]


def test_one_that_waits_may_be_waited_for():
    assert order(
        "1 mremap(0x10000, 4096, 8192, MREMAP_MAYMOVE <unfinished ...>",
        f"2 mmap(NULL, 4096, {ANONYMOUS}) = 0x10000",
        "2 munmap(0x10000, 4096) = 0",
        f"3 mmap(NULL, 4096, {ANONYMOUS}) = 0x10000",
        "1 <... mremap resumed>) = 0x30000",
    ) == [(1, Call.MREMAP), (2, Call.MMAP), (2, Call.MUNMAP), (3, Call.MMAP)]


def test_nothing_waits_without_need():
    assert order(
        "1 mremap(0x10000, 4096, 8192, MREMAP_MAYMOVE <unfinished ...>",
        f"2 mmap(NULL, 4096, {ANONYMOUS}) = 0x11000",
        "2 mmap(0x10000, 4096, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED, -1, 0) = 0x10000",
        "1 <... mremap resumed>) = 0x30000",
    ) == [(2, Call.MMAP), (2, Call.MMAP), (1, Call.MREMAP)]


def test_a_call_that_never_returns_does_not_hold_up_the_rest():
    reader = Reader(
        io.BytesIO(
            b"1 mremap(0x10000, 4096, 8192, MREMAP_MAYMOVE <unfinished ...>\n"
            b"2 mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x10000\n"
            b"1 +++ killed by SIGKILL +++\n"
            b"3 brk(NULL) = 0x1000\n"
        ),
        "t",
    )
    assert [e.pid for e in in_order(reader)] == [2, 1, 3]
