# SPDX-License-Identifier: MIT
"""Faults that a monitor serves: every way to wait and to be woken, under every protocol.

A faults, B is the monitor, C prepares and checks.
"""

import pytest
from protocol_engines import stepped
from protocol_sets import GUARDED, SPECULATIVE

from spfemu.checks import check_segment
from spfemu.engines.script import after, before, waits
from spfemu.mm.flags import PMD_SIZE, VM_UFFD_FLAGS, Errno, Mremap, Prot, Pte
from spfemu.mm.mcopy import UffdCopy
from spfemu.mm.userfaultfd import MSG_WP, MSG_WRITE
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Threads
from spfemu.stress.schedules.served import MISSING, WP, Served

AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
PAGES = 16
LENGTH = PAGES << 12
DATA = Served.DATA


def served_under(engine):
    return Served(engine, Segment.create(Geometry(nr_cpus=3, nr_spare_mms=2)))


@pytest.fixture(params=GUARDED)
def protocol(request):
    return request.param


@pytest.fixture
def served(own_cache, protocol):
    """A process with an area that nobody serves yet; its first page is written."""
    made = served_under(stepped(protocol))
    made.map(AREA, PAGES)
    made.write(AREA, 1)
    yield made
    assert check_segment(made.segment) == []
    made.segment.close()


@pytest.fixture
def threads(served):
    with Threads(served) as script:
        yield script


def message(process, timeout_ns=0):
    return process.call("message", process.ctx, timeout_ns, cpu=1)


# Missing pages


@pytest.mark.parametrize(("access", "flags"), [(("write", PAGE + 8, 7), MSG_WRITE),
                                               (("read", PAGE), 0)])  # fmt: skip
def test_a_missing_page_is_filled_by_the_monitor(served, threads, access, flags):
    served.serves(AREA, PAGES)
    a = threads.thread("A", *access)
    a.runs_until(waits())
    assert message(served) == (0, PAGE, flags)
    assert message(served) == (-Errno.EAGAIN, 0, 0)

    assert served.copies(PAGE) == 4096
    result = a.runs_to_end()

    assert result == (0 if access[0] == "write" else (0, DATA))
    assert served.read(PAGE) == DATA
    assert served.events(0)["UFFD_WAIT"] == 1


def test_the_zero_page_fills_a_page_too(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())

    assert served.call("zeropage", served.ctx, PAGE, 2 << 12, 0) == 2 << 12

    assert a.runs_to_end() == 0
    assert (served.read(PAGE), served.read(PAGE + 4096)) == (7, 0)


@pytest.mark.parametrize("name", ["write", "read"])
@pytest.mark.parametrize("protocol", SPECULATIVE, indirect=True)
def test_speculation_leaves_it_to_the_locked_path(served, threads, name):
    served.serves(AREA, PAGES)
    a = threads.thread("A", name, PAGE, *([7] if name == "write" else []))
    a.runs_until(waits())
    assert served.aborts() == {"USERFAULTFD": 1}
    served.copies(PAGE)
    a.runs_to_end()
    assert served.aborts() == {"USERFAULTFD": 1}


@pytest.mark.parametrize("protocol", ["vma-lock"], indirect=True)
def test_a_vma_lock_is_not_tried(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    assert served.vma_lock() == {"ABORT_USERFAULTFD": 1}
    served.copies(PAGE)
    a.runs_to_end()


@pytest.mark.parametrize("protocol", ["vma-refcount"], indirect=True)
def test_a_vma_reference_is_dropped_for_the_wait(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    assert "FAULT_CLASSIC" not in served.events(0)
    vmas = served.segment.vmas
    assert set(vmas["vm_refcnt"][vmas["slab_state"] == 1]) == {1}
    served.copies(PAGE)
    a.runs_to_end()
    assert served.vma_lock() == {"RETRY": 1}


def test_the_monitor_sleeps_until_a_fault_comes(served, threads):
    served.serves(AREA, PAGES)
    b = threads.thread("B", "message", served.ctx, -1)
    a = threads.thread("A", "write", PAGE, 7)
    b.runs_until(waits())
    a.runs_until(waits(), letting=[b])
    assert b.runs_to_end(letting=[a]) == (0, PAGE, MSG_WRITE)
    served.copies(PAGE)
    assert a.runs_to_end() == 0


@pytest.mark.parametrize(
    "point",
    [
        before("userfaultfd_queue"),
        after("userfaultfd_queue"),
        after("userfaultfd_must_wait"),
        after("release_fault_lock"),
        before("futex_wake", inside="userfaultfd_sleep"),
        before("cpu_sleep", inside="userfaultfd_sleep"),
        before("futex_wait", inside="userfaultfd_sleep"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_no_wake_up_is_lost(served, threads, point):
    """The page is filled, and whoever waits is woken, at any moment on the way to sleep."""
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE + 8, 7)
    a.runs_until(point)
    assert served.copies(PAGE) == 4096
    assert a.runs_to_end() == 0
    assert served.read(PAGE) == DATA


def test_woken_for_nothing_it_waits_again(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    for _ in range(3):
        a.runs_until(waits())
        assert message(served) == (0, PAGE, MSG_WRITE)
        assert served.call("wake", served.ctx, PAGE, 4096) == 0
    a.runs_until(waits())
    served.copies(PAGE)
    assert a.runs_to_end() == 0


def test_only_who_waits_for_the_range_is_woken(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "write", PAGE + 4096, 8)
    a.runs_until(waits())
    b.runs_until(waits())
    served.copies(PAGE + 4096)
    assert b.runs_to_end() == 0
    assert not a.done
    served.copies(PAGE, mode=int(UffdCopy.DONTWAKE))
    served.call("wake", served.ctx, PAGE, 4096)
    assert a.runs_to_end() == 0


def test_a_filled_page_is_not_filled_again(served):
    served.serves(AREA, PAGES)
    assert served.copies(PAGE, 2) == 2 << 12
    assert served.copies(PAGE) == -Errno.EEXIST
    assert served.copies(AREA + 3 * 4096, 2) == 2 << 12
    assert served.call("zeropage", served.ctx, PAGE, 4096, 0) == -Errno.EEXIST
    # up to the first that is there
    assert served.call("zeropage", served.ctx, AREA + 5 * 4096, 4096, 0) == 4096
    assert served.call("copy", served.ctx, ELSEWHERE, served.SOURCE, 4096, 0) == -Errno.ENOENT


def test_a_page_dropped_again_is_missing_again(served, threads):
    served.serves(AREA, PAGES)
    served.copies(PAGE)
    served.call("dontneed", PAGE, 4096)
    a = threads.thread("A", "read", PAGE)
    a.runs_until(waits())
    served.copies(PAGE)
    assert a.runs_to_end() == (0, DATA)


# Who is woken when nobody serves the range any more


def unregister(process):
    assert process.call("unregister", process.ctx, AREA, LENGTH) == 0


def close(process):
    process.call("release", process.ctx)


def unmap_and_close(process):
    assert process.call("munmap", AREA, LENGTH) == 0
    close(process)


ON_THE_WAY = [before("futex_wait", inside="userfaultfd_sleep"), after("release_fault_lock")]


@pytest.mark.parametrize(
    ("ends", "result", "point"),
    [(unregister, 0, point) for point in (waits(), *ON_THE_WAY)]
    + [(close, 0, point) for point in (waits(), *ON_THE_WAY)]
    + [(unmap_and_close, -int(Errno.EFAULT), waits())],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_who_waits_is_woken_at_the_end(served, threads, ends, result, point):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(point)
    ends(served)
    assert a.runs_to_end() == result


def test_who_has_queued_itself_when_the_context_is_closed_does_not_sleep(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "release", served.ctx)
    a.runs_until(after("userfaultfd_must_wait"))
    b.runs_until(waits())
    a.runs_until(after("release_fault_lock"))
    b.runs_to_end()
    assert a.runs_to_end() == 0
    assert "UFFD_WAIT" not in served.events(0)
    assert served.segment.uffds["refcount"].sum() == 0


def test_a_fatal_signal_ends_the_wait(served, threads):
    served.serves(AREA, PAGES)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    served.call("kill", served.segment.cpu(0))
    assert a.runs_to_end() == -Errno.EINTR
    assert message(served) == (-Errno.EAGAIN, 0, 0)
    served.segment.cpus["fatal_signal"][0] = 0


# Write protection


def protect(process, address, pages=1, mode=int(UffdCopy.WP)):
    assert process.call("writeprotect", process.ctx, address, pages << 12, mode) == 0


def test_a_protected_page_is_written_after_the_monitor_allows_it(served, threads):
    served.serves(AREA, PAGES, WP)
    served.write(PAGE, 5)
    protect(served, PAGE)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    assert served.read(PAGE) == 5
    assert message(served) == (0, PAGE, MSG_WRITE | MSG_WP)
    protect(served, PAGE, mode=0)
    assert a.runs_to_end() == 0
    assert served.read(PAGE) == 7


@pytest.mark.parametrize("protocol", SPECULATIVE, indirect=True)
def test_speculation_leaves_a_protected_page_to_the_locked_path(served, threads):
    served.serves(AREA, PAGES, WP)
    served.write(PAGE, 5)
    protect(served, PAGE)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    assert served.aborts() == {"USERFAULTFD": 1}
    assert served.events(0)["SPF_ATTEMPT_WP"] == 1
    protect(served, PAGE, mode=0)
    a.runs_to_end()
    assert served.aborts() == {"USERFAULTFD": 1}


def test_a_copy_may_come_protected(served, threads):
    served.serves(AREA, PAGES, MISSING | WP)
    served.copies(PAGE, mode=int(UffdCopy.WP))
    assert served.read(PAGE) == DATA
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    assert message(served) == (0, PAGE, MSG_WRITE | MSG_WP)
    protect(served, PAGE, mode=0)
    assert a.runs_to_end() == 0


def test_the_zero_page_is_protected_too(served, threads):
    served.serves(AREA, PAGES, WP)
    assert served.read(PAGE) == 0
    protect(served, PAGE)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    protect(served, PAGE, mode=0)
    assert a.runs_to_end() == 0
    assert served.read(PAGE) == 7


def test_what_is_missing_is_not_protected(served, threads):
    served.serves(AREA, PAGES, WP)
    protect(served, PAGE)
    assert threads.thread("A", "write", PAGE, 7).runs_to_end() == 0


def test_mprotect_keeps_the_protection(served, threads):
    served.serves(AREA, PAGES, WP)
    served.write(PAGE, 5)
    protect(served, PAGE)
    for prot in (int(Prot.READ), RW):
        assert served.call("mprotect", AREA, LENGTH, prot) == 0
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    protect(served, PAGE, mode=0)
    assert a.runs_to_end() == 0


@pytest.mark.parametrize("ends", [unregister, close])
def test_protection_ends_with_the_registration(served, threads, ends):
    served.serves(AREA, PAGES, WP)
    served.write(PAGE, 5)
    protect(served, PAGE)
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    ends(served)
    assert a.runs_to_end() == 0
    assert served.read(PAGE) == 7


# Fork and mremap


def test_a_child_is_not_served(served, threads):
    served.serves(AREA, PAGES, MISSING | WP)
    served.copies(PAGE, mode=int(UffdCopy.WP))
    child = served.call("fork")
    cpu = served.segment.cpu(2)
    served.engine.call("switch_mm", cpu, child)
    assert served.read(PAGE) == DATA
    served.write(PAGE, 9)
    served.write(PAGE + 4096, 8)
    assert check_segment(served.segment) == []
    assert served.call("exit", served.segment.mm(0)) == 0
    # the parent's page is still protected
    a = threads.thread("A", "write", PAGE, 7)
    a.runs_until(waits())
    protect(served, PAGE, mode=0)
    assert a.runs_to_end() == 0


def test_a_moved_mapping_is_not_served(served):
    served.serves(AREA, PAGES, MISSING | WP)
    served.copies(PAGE, mode=int(UffdCopy.WP))
    flags = int(Mremap.MAYMOVE | Mremap.FIXED)
    assert served.call("mremap", AREA, LENGTH, LENGTH, flags, ELSEWHERE) == ELSEWHERE
    assert served.flags_at(ELSEWHERE) & VM_UFFD_FLAGS == 0
    assert served.read(ELSEWHERE + 4096) == DATA
    served.write(ELSEWHERE + 4096, 7)
    served.write(ELSEWHERE + 8192, 8)


def test_what_a_move_leaves_mapped_is_still_served(served, threads):
    served.serves(AREA, PAGES)
    flags = int(Mremap.MAYMOVE | Mremap.FIXED | Mremap.DONTUNMAP)
    assert served.call("mremap", AREA, LENGTH, LENGTH, flags, ELSEWHERE) == ELSEWHERE
    assert served.read(ELSEWHERE) == 1
    a = threads.thread("A", "read", AREA)
    a.runs_until(waits())
    served.copies(AREA)
    assert a.runs_to_end() == (0, DATA)


def test_a_process_may_end_before_its_context(served):
    """It keeps the struct, not the mappings."""
    child = served.call("fork")
    cpu = served.segment.cpu(1)
    served.engine.call("switch_mm", cpu, child)
    ctx = served.call("open", cpu=1)
    assert served.call("register", ctx, AREA, LENGTH, MISSING, cpu=1) == 0
    assert served.call("exit", served.segment.mm(0), cpu=1) == 0
    assert check_segment(served.segment) == []
    assert served.call("copy", ctx, PAGE, served.SOURCE, 4096, 0) == -Errno.ESRCH
    assert served.call("register", ctx, AREA, LENGTH, MISSING) == -Errno.ENOMEM
    served.call("release", ctx)
    index = (child - served.segment.mm(0)) // served.segment.mms.dtype.itemsize
    assert not served.segment.mms["in_use"][index]


def test_a_monitor_that_reclaims_takes_the_lock_of_its_own_process_first(own_cache):
    """It holds the other's mmap lock, for a page table that is missing there."""
    geometry = Geometry(nr_cpus=3, nr_spare_mms=2, nr_frames=600, nr_swap=256)
    process = Served(stepped("classic"), Segment.create(geometry))
    parent, segment, call = process.segment.mm(0), process.segment, process.engine.call
    process.map(AREA, PAGES)
    process.map(AREA + PMD_SIZE, 1)
    for page in range(PAGES):
        process.write(AREA + page * 4096, 1)
    ctx = process.call("open")
    assert process.call("register", ctx, AREA + PMD_SIZE, 4096, MISSING) == 0
    child = process.call("fork")
    call("switch_mm", segment.cpu(0), child)
    assert process.call("write", AREA, 9, cpu=0) == 0
    taken = []
    for cpu in range(3):
        while page := call("rmqueue", segment.cpu(cpu)):
            taken.append(page)
    # the copy has a frame, the page table for it has none
    call("free_page", segment.cpu(0), taken.pop())
    call("mmap_write_lock", segment.cpu(1), child)
    assert process.call("copy", ctx, AREA + PMD_SIZE, AREA, 4096, 0, cpu=0) == 4096
    entry = call("lookup_pte", child, AREA)
    call("mmap_write_unlock", segment.cpu(1), child)
    for page in taken:
        call("free_page", segment.cpu(0), page)
    assert process.events(0)["PSWPOUT"] > 0
    assert entry & Pte.PRESENT
    assert process.read(AREA + PMD_SIZE) == 9
    process.call("release", ctx)
    assert process.call("exit", parent, cpu=0) == 0
    assert check_segment(segment) == []
    segment.close()


# VMAs


def test_vmas_are_split_and_merged_by_context(served):
    count = served.segment.mms["map_count"][0]
    served.serves(PAGE, 2)
    assert served.segment.mms["map_count"][0] == count + 2
    served.serves(PAGE + 8192, 2)
    assert served.segment.mms["map_count"][0] == count + 2
    other = served.call("open")
    assert served.call("register", other, PAGE, 4096, MISSING) == -Errno.EBUSY
    assert served.call("register", other, PAGE + 5 * 4096, 4096, MISSING) == 0
    assert served.call("unregister", served.ctx, PAGE, 4 << 12) == 0
    assert served.segment.mms["map_count"][0] == count + 2
    served.call("release", other)
    assert served.segment.mms["map_count"][0] == count


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((AREA, LENGTH, 0), Errno.EINVAL),
        ((AREA, LENGTH, 8), Errno.EINVAL),
        ((AREA + 1, LENGTH, MISSING), Errno.EINVAL),
        ((AREA, LENGTH + 1, MISSING), Errno.EINVAL),
        ((AREA, 0, MISSING), Errno.EINVAL),
        ((0, LENGTH, MISSING), Errno.EINVAL),
        ((1 << 46, LENGTH, MISSING), Errno.ENOMEM),
        ((AREA + LENGTH, LENGTH, MISSING), Errno.EINVAL),
    ],
)
@pytest.mark.parametrize("protocol", ["classic"], indirect=True)
def test_bad_registrations(served, arguments, error):
    assert served.call("register", served.ctx, *arguments) == -error


@pytest.mark.parametrize("protocol", ["classic"], indirect=True)
def test_contexts_run_out(served):
    opened = [served.call("open") for _ in range(served.segment.geometry.nr_uffds)]
    assert opened[-1] == -Errno.EMFILE
    for ctx in opened[:-1]:
        served.call("release", ctx)
    assert served.call("open") > 0


# A registration during a fault


@pytest.mark.parametrize(
    "point",
    [
        before("handle_page_fault"),
        after("vma_rb_lookup"),
        before("handle_pte_fault"),
        before("do_anonymous_page"),
        before("pte_map_lock", inside="do_anonymous_write"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_no_page_comes_without_a_message_once_registered(served, threads, point):
    """Else the monitor would not know of it (Linux: b1f02b95758d, mm_lock_seq without barriers)."""
    a = threads.thread("A", "write", PAGE, 7)
    b = threads.thread("B", "register", served.ctx, AREA, LENGTH, MISSING)
    a.runs_until(point)
    try:
        b.runs_to_end()
    except AssertionError:
        # it waits for the lock that A has: A comes first
        assert a.runs_to_end(letting=[b]) == 0
        assert b.runs_to_end() == 0
        return
    a.runs_until(waits())
    assert message(served) == (0, PAGE, MSG_WRITE)
    served.copies(PAGE)
    assert a.runs_to_end() == 0


# Random orders


BESIDE = {
    "another fault": ("write", PAGE + 16, 8),
    "drop": ("dontneed", PAGE, 4096),
    "unregister": ("unregister", AREA, LENGTH),
    "unmap": ("munmap", AREA + 8192, 4096),
    "protect": ("mprotect", AREA, LENGTH, int(Prot.READ)),
}


@pytest.mark.parametrize("name", BESIDE)
def test_everybody_comes_to_an_end_in_random_orders(served, name):
    call, *arguments = BESIDE[name]
    for seed in range(10):
        served.begin(seed)
        served.map(AREA, PAGES)
        served.write(AREA, 1)
        served.serves(AREA, PAGES)
        word = served.segment.scratch(0)
        served.segment.words[(word - served.segment.base) // 8] = 0
        if call == "unregister":
            arguments = [served.ctx, AREA, LENGTH]
        with Threads(served) as threads:
            a = threads.thread("A", "write_counted", served.ctx, word, PAGE + 8, 7)
            b = threads.thread("B", "serve", served.ctx, served.SOURCE, word, 1 + (call == "write"))
            if call == "write":
                c = threads.thread("C", "write_counted", served.ctx, word, *arguments)
            else:
                c = threads.thread("C", call, *arguments)
            schedule = threads.runs_randomly(seed)
            assert a.result in ((0, -Errno.EFAULT) if name == "protect" else (0,)), (seed, schedule)
            assert (b.result, c.result) == (0, 0), (seed, schedule)
        assert check_segment(served.segment) == [], (seed, schedule)
        if name == "another fault":
            found = [served.read(PAGE + offset) for offset in (0, 8, 16)]
            assert found == [DATA, 7, 8], (seed, schedule)
