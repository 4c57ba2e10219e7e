# SPDX-License-Identifier: MIT
"""A monitor serves faults that the kernel takes for a call: mlock, populate, get_user_pages.

A calls and waits, without the mmap lock; the page is filled, and the call goes on from there.
"""

import pytest
from protocol_engines import stepped

from spfemu.checks import check_segment
from spfemu.engines.script import before, waits
from spfemu.mm.flags import Errno, Madv, Map, Mcl, Mremap, Prot, Pte
from spfemu.mm.mcopy import UffdCopy
from spfemu.mm.userfaultfd import MSG_WP, MSG_WRITE
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Threads
from spfemu.stress.schedules.served import WP, Served

AREA = 1 << 40
PAGES = 6
LENGTH = PAGES << 12
THERE = (0, 3)
"""Pages that are there before the calls."""
MISSING_PAGES = [AREA + (n << 12) for n in range(PAGES) if n not in THERE]
PROTOCOLS = ["classic", "spf", "vma-refcount"]
READ = 0

MLOCK = ("mlock", AREA, LENGTH)
MLOCKALL = ("mlockall", int(Mcl.CURRENT))
POPULATE_READ = ("advise", AREA, LENGTH, int(Madv.POPULATE_READ))
POPULATE_WRITE = ("advise", AREA, LENGTH, int(Madv.POPULATE_WRITE))
GET = ("get", AREA, PAGES)
GET_WRITABLE = ("get_writable", AREA, PAGES)
CALLS = {
    "mlock": (MLOCK, MSG_WRITE, 0),
    "mlockall": (MLOCKALL, MSG_WRITE, 0),
    "populate-read": (POPULATE_READ, READ, 0),
    "populate-write": (POPULATE_WRITE, MSG_WRITE, 0),
    "get": (GET, READ, PAGES),
    "get-writable": (GET_WRITABLE, MSG_WRITE, PAGES),
}
"""By name: the call, the flags of its messages, its result."""


@pytest.fixture(params=PROTOCOLS)
def served(own_cache, request):
    """A process with an area that a monitor serves, and some pages in it."""
    made = Served(stepped(request.param), Segment.create(Geometry(nr_cpus=3, nr_spare_mms=2)))
    made.map(AREA, PAGES)
    for page in THERE:
        made.write(AREA + (page << 12), 1)
    yield made
    assert check_segment(made.segment) == []
    made.segment.close()


@pytest.fixture
def threads(served):
    with Threads(served) as script:
        yield script


def message(process):
    return process.call("message", process.ctx, 0)


def serve_missing(process, thread, pages, flags):
    """Fill the pages, in the order in which the thread has to wait for them."""
    for page in pages:
        thread.runs_until(waits())
        assert message(process) == (0, page, flags)
        assert process.segment.cpus["mmap_lock_held"][0] == 0
        assert process.copies(page) == 4096


def gives_back(process, call):
    """Drop the references that a call has taken."""
    if call[0] in ("get", "get_writable"):
        cpu = process.segment.cpu(0)
        for page in process.segment.cpus["gup_pages"][0][: call[2]]:
            process.engine.call("put_user_page", cpu, int(page))


def present(process):
    mm = process.segment.mm(0)
    entries = [process.engine.call("lookup_pte", mm, AREA + (n << 12)) for n in range(PAGES)]
    return [n for n, entry in enumerate(entries) if entry & Pte.PRESENT]


@pytest.mark.parametrize("name", CALLS)
def test_it_waits_for_each_missing_page_and_goes_on(served, threads, name):
    call, flags, result = CALLS[name]
    served.serves(AREA, PAGES)
    a = threads.thread("A", *call)
    serve_missing(served, a, MISSING_PAGES, flags)
    assert a.runs_to_end() == result
    gives_back(served, call)
    assert message(served) == (-Errno.EAGAIN, 0, 0)
    assert present(served) == list(range(PAGES))
    assert [served.read(page) for page in MISSING_PAGES] == [served.DATA] * len(MISSING_PAGES)


def test_a_locked_mapping_that_grows_waits_for_what_is_new(served, threads):
    assert served.call("mlock", AREA, LENGTH) == 0
    served.serves(AREA, PAGES)
    a = threads.thread("A", "mremap", AREA, LENGTH, LENGTH + 8192, int(Mremap.MAYMOVE), 0)
    serve_missing(served, a, [AREA + LENGTH, AREA + LENGTH + 4096], MSG_WRITE)
    assert a.runs_to_end() == AREA


def test_a_mapping_that_is_registered_before_it_is_populated_waits(served, threads):
    a = threads.thread("A", "mmap", AREA, LENGTH, RW, FIXED | int(Map.POPULATE))
    a.runs_until(before("__mm_populate"))
    served.serves(AREA, PAGES)
    serve_missing(served, a, [AREA + (n << 12) for n in range(PAGES)], MSG_WRITE)
    assert a.runs_to_end() == AREA


def test_a_subscriber_waits(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "read_by_device", MISSING_PAGES[0])
    serve_missing(served, a, MISSING_PAGES[:1], READ)
    assert a.runs_to_end() == (0, served.DATA)


@pytest.mark.parametrize("name", ["populate-write", "get-writable"])
def test_it_waits_for_a_protected_page(served, threads, name):
    call, _, result = CALLS[name]
    served.call("advise", AREA, LENGTH, int(Madv.POPULATE_WRITE))
    served.serves(AREA, PAGES, WP)
    page = AREA + 4096
    assert served.call("writeprotect", served.ctx, page, 4096, int(UffdCopy.WP)) == 0
    a = threads.thread("A", *call)
    a.runs_until(waits())
    assert message(served) == (0, page, MSG_WRITE | MSG_WP)
    assert served.call("writeprotect", served.ctx, page, 4096, 0) == 0
    assert a.runs_to_end() == result
    gives_back(served, call)


# What has changed when it goes on


def unmap(process):
    assert process.call("munmap", AREA, LENGTH) == 0
    process.call("release", process.ctx)


def forbid(process):
    assert process.call("mprotect", AREA, LENGTH, int(Prot.READ)) == 0
    process.call("release", process.ctx)


def unregister(process):
    assert process.call("unregister", process.ctx, AREA, LENGTH) == 0


def kill(process):
    process.call("kill", process.segment.cpu(0))


@pytest.mark.parametrize(
    ("name", "changes", "result"),
    [
        ("mlock", unmap, 0),  # what is locked by then is no more
        ("populate-write", unmap, -Errno.ENOMEM),
        ("get-writable", unmap, 1),
        ("populate-write", forbid, -Errno.EINVAL),
        ("get-writable", forbid, 1),
        ("mlock", unregister, 0),
        ("populate-write", unregister, 0),
        ("get", unregister, PAGES),
        ("mlock", kill, -Errno.EINTR),
        ("mlockall", kill, 0),  # errors are ignored
        ("populate-read", kill, -Errno.EINTR),
        ("get", kill, 1),
    ],
)
def test_it_goes_on_with_what_is_there_then(served, threads, name, changes, result):
    call, _, _ = CALLS[name]
    served.serves(AREA, PAGES)
    a = threads.thread("A", *call)
    a.runs_until(waits())
    changes(served)
    assert a.runs_to_end() == result
    served.segment.cpus["fatal_signal"][0] = 0
    if call[0].startswith("get"):
        gives_back(served, (call[0], AREA, result))


def test_a_subscriber_that_is_killed_reads_nothing(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "read_by_device", MISSING_PAGES[0])
    a.runs_until(waits())
    kill(served)
    assert a.runs_to_end() == (-Errno.EINTR, 0)
    served.segment.cpus["fatal_signal"][0] = 0


def test_only_who_holds_the_lock_for_writing_does_not_wait(served):
    """A change of rights touches locked pages (mprotect_fixup), and leaves those of a monitor."""
    assert served.call("mprotect", AREA, LENGTH, int(Prot.READ)) == 0
    assert served.call("mlock", AREA, LENGTH) == 0
    assert served.call("advise", AREA, LENGTH, int(Madv.DONTNEED_LOCKED)) == 0
    served.serves(AREA, PAGES)
    assert served.call("mprotect", AREA, LENGTH, RW) == 0
    assert present(served) == []
    assert message(served) == (-Errno.EAGAIN, 0, 0)
