# SPDX-License-Identifier: MIT
"""Subscribers to changes of mappings, and monitors of faults."""

from spfemu.engines.script import after, before
from spfemu.mm.flags import Madv
from spfemu.mm.mcopy import UffdCopy
from spfemu.segment import Geometry
from spfemu.stress.schedules.process import Process, Threads
from spfemu.stress.schedules.schedule import expect, schedule, tries_until
from spfemu.stress.schedules.served import WP, Served

AREA = 1 << 40
PAGE = AREA + 4096
STARTED = after("mmu_notifier_invalidate_range_start", inside="wp_page_copy")


class Forked(Process):
    """A process whose page at PAGE, where 2 stands, is a child's too."""

    def begin(self, seed: int = 1) -> None:
        """Put everything into the initial state, and fork."""
        super().begin(seed)
        self.map(AREA, 16)
        self.write(AREA, 1)
        self.write(PAGE, 2)
        self.child = self.call("fork")

    def told(self) -> list[tuple[int, int]]:
        """Starts and ends that each subscriber was told of."""
        notifiers = self.segment.notifiers
        used = notifiers[notifiers["in_use"] != 0]
        return [(int(one["nr_starts"]), int(one["nr_ends"])) for one in used]


@schedule(process=Forked)
def a_subscriber_comes_during_a_copy(process: Forked, seed: int) -> None:
    """Somebody subscribes while a copy on write is between the start it told and the end."""
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "subscribe")
        b.runs_until(after("rcu_sync_enter"))
        a.runs_until(STARTED, letting=[b])
        b.runs_to_end(letting=[a])
        expect("the write", a.runs_to_end(letting=[b]), 0)
    for starts, ends in process.told():
        expect("ends that the subscriber was told of", ends, starts)


@schedule(process=Forked)
def a_subscriber_reads_before_and_after_a_copy(process: Forked, seed: int) -> None:
    """A subscriber reads a page, which is copied for a write, and reads it again."""
    subscription = process.call("subscribe")
    expect("what it reads", process.call("secondary_read", subscription, PAGE), (0, 2))
    process.write(PAGE, 7)
    expect("what it reads", process.call("secondary_read", subscription, PAGE), (0, 7))


@schedule(process=Forked)
def a_subscriber_looks_up_during_a_copy(process: Forked, seed: int) -> None:
    """A subscriber has found the old frame of a page when that is copied for a write."""
    subscription = process.call("subscribe")
    # it runs another mm and takes no IPI
    process.engine.call("switch_mm", process.segment.cpu(1), process.child)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "secondary_read", subscription, PAGE)
        b.runs_until(after("secondary_lookup"))
        expect("the write", a.runs_to_end(), 0)
        expect("what it reads", b.runs_to_end(), (0, 7))


@schedule(process=Served)
def a_page_is_filled_before_its_fault_waits(process: Served, seed: int) -> None:
    """A monitor fills a page when a fault has not said yet that it waits."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    process.serves(AREA, 16)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE + 8, 7)
        a.runs_until(before("userfaultfd_queue"))
        process.copies(PAGE)
        expect("the write", a.runs_to_end(), 0)


@schedule(process=Served)
def a_page_is_populated_while_its_monitor_goes(process: Served, seed: int) -> None:
    """A monitor has begun to close its userfaultfd when missing pages are populated."""
    process.map(AREA, 16)
    process.serves(AREA, 16)
    with Threads(process) as threads:
        a = threads.thread("A", "advise", AREA, 2 << 12, int(Madv.POPULATE_WRITE))
        b = threads.thread("B", "release", process.ctx)
        b.runs_until(before("mmap_write_lock", inside="userfaultfd_release"))
        a.runs_until(after("handle_userfault"))
        b.runs_until(before("userfaultfd_modify_vma"))
        expect("the populate", a.runs_to_end(letting=[b]), 0)
        b.runs_to_end()


@schedule(Geometry(nr_cpus=4), Served)
def copy_beside_write_protection(process: Served, seed: int) -> None:
    """A page is copied that another thread writes by its TLB: B has protected it, D ended that.

    Neither has flushed yet.  Something else has a reference to the page, or it was not copied.
    """
    process.map(AREA, 16)
    process.serves(AREA, 16, WP)
    process.write(PAGE, 2)
    process.write(PAGE + 8, 3)
    pages = process.segment.pages
    (page,) = (pages["index"] == PAGE >> 12).nonzero()[0]
    pages["refcount"][page] += 1
    protect = ("writeprotect", process.ctx, PAGE, 4096, int(UffdCopy.WP))
    end = (process.segment.cpu(3), process.ctx, PAGE, 4096, 0)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", *protect)
        c = threads.thread("C", "write", PAGE + 8, 9)
        d = threads.cpu("D", "thread_writeprotect", *end)
        b.runs_until(before("flush_tlb_mm", inside="change_protection"))
        d.runs_until(before("flush_tlb_mm", inside="change_protection"))
        a.runs_until(after("copy_page"), letting=[b, d])
        c.runs_to_end(letting=[a, b, d])
        for cpu in (a, b, d):
            cpu.runs_to_end(letting=[a, b, d])
    expect("what was written by an old translation", process.read(PAGE + 8), 9)
    address = process.segment.address["vmemmap"] + int(page) * 64
    process.engine.call("put_page", process.segment.cpu(0), address)


@schedule()
def grace_period_beside_a_lookup(process: Process, seed: int) -> None:
    """A fault copies a VMA that is unmapped, and the writer waits for a grace period."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    elsewhere = 1 << 41
    process.map(elsewhere, 4)
    vmas = process.segment.vmas
    (index,) = ((vmas["vm_start"] == elsewhere) & (vmas["slab_state"] == 1)).nonzero()[0]
    with Threads(process) as threads:
        a = threads.thread("A", "write", elsewhere, 7)
        b = threads.thread("B", "munmap", elsewhere, 4 << 12)
        a.runs_until(after("load", nth=2, inside="copy_pvma"))
        b.runs_to_end(letting=[a])
        c = threads.cpu("C", "rcu_barrier", process.segment.cpu(1))
        tries_until(c, after("vm_area_free_rcu"))
        expect("state of the VMA that is being copied", int(vmas["slab_state"][index]), 2)
        a.runs_to_end(letting=[c])
        c.runs_to_end()
