# SPDX-License-Identifier: MIT
"""Write protection by a monitor flushes TLBs late: a copy of the page must not lose a store."""

import pytest
from mutants import mutant_engine
from protocol_engines import stepped
from protocol_sets import SAFE

from spfemu.checks import check_segment
from spfemu.engines.script import after, before
from spfemu.mm.mcopy import UffdCopy
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.process import Threads
from spfemu.stress.schedules.served import WP, Served

AREA = 1 << 40
PAGE = AREA + 4096
PAGES = 16


def stale_store(engine):
    """A copies a page while C writes to it through a translation from before B protected it.

    D has ended the protection meanwhile, and neither has flushed TLBs yet.  Something else has a
    reference to the page, or A would not copy it.  Returns what C wrote and what is there then.
    """
    process = Served(engine, Segment.create(Geometry(nr_cpus=4)))
    process.map(AREA, PAGES)
    process.serves(AREA, PAGES, WP)
    process.write(PAGE, 2)
    process.write(PAGE + 8, 3)
    pages = process.segment.pages
    (page,) = (pages["index"] == PAGE >> 12).nonzero()[0]
    pages["refcount"][page] += 1
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "writeprotect", process.ctx, PAGE, 4096, int(UffdCopy.WP))
        c = threads.thread("C", "write", PAGE + 8, 9)
        d = threads.cpu(
            "D", "thread_writeprotect", process.segment.cpu(3), process.ctx, PAGE, 4096, 0
        )
        b.runs_until(before("flush_tlb_mm", inside="change_protection"))
        d.runs_until(before("flush_tlb_mm", inside="change_protection"))
        a.runs_until(after("copy_page"), letting=[b, d])
        assert c.runs_to_end(letting=[a, b, d]) == 0
        for cpu in (a, b, d):
            assert cpu.runs_to_end(letting=[a, b, d]) == 0
    found = process.read(PAGE + 8)
    address = process.segment.address["vmemmap"] + int(page) * 64
    engine.call("put_page", process.segment.cpu(0), address)
    assert check_segment(process.segment) == []
    process.segment.close()
    return 9, found


@pytest.mark.parametrize("protocol", SAFE)
def test_no_store_is_lost_to_a_copy_beside_write_protection(own_cache, protocol):
    written, found = stale_store(stepped(protocol))
    assert found == written


def test_a_copy_that_does_not_flush_what_is_pending_loses_a_store(own_cache):
    """Linux 5.7 to 5.11 (6ce64428d620)."""
    engine = mutant_engine("spf", "pending_flush_ignored")
    written, found = stale_store(engine)
    assert found != written
