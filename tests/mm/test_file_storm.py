# SPDX-License-Identifier: MIT
"""Real CPUs fault on a file while others cut it, write it back and map it anew."""

import pytest
from file_machine import PRIVATE, SHARED, FileMachine, page
from protocol_sets import STORMED

from spfemu.events import Event

PAGES = 48
ROUNDS = 60


@pytest.mark.parametrize("flags", [SHARED, PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("protocol", STORMED)
def test_no_touch_finds_another_page_and_all_checks_hold(protocol, flags):
    machine = FileMachine("native", protocol, nr_cpus=4)
    file = machine.create(pages=PAGES)
    for index in range(PAGES):
        assert machine.on(0, "sys_pwrite", file, index << 12, index + 1) == 0
    machine.map(file, pages=PAGES, flags=flags)
    shared = int(flags == SHARED)
    with machine.workers() as workers:
        workers.start_gated({
            0: ("touch_file", machine.cpu(0), page(0), PAGES, ROUNDS, 0),
            1: ("touch_file", machine.cpu(1), page(0), PAGES, ROUNDS, 1),
            2: ("cut_file", machine.cpu(2), file, PAGES, ROUNDS),
            3: ("remap_file", machine.cpu(3), page(0), PAGES, ROUNDS, file, shared),
        })  # fmt: skip
        assert workers.join() == {0: 0, 1: 0, 2: 0, 3: 0}
    assert machine.violations() == []
    assert machine.total(Event.PAGES_TRUNCATED) > 0
    machine.close()


@pytest.mark.parametrize("protocol", STORMED)
def test_writing_back_beside_writes_keeps_files_and_entries_agreed(protocol):
    """After each run a writable entry has to be one of a dirty page."""
    machine = FileMachine("native", protocol, nr_cpus=3)
    file = machine.create(pages=PAGES)
    machine.map(file, pages=PAGES)
    assert machine.write(0, 1) == 0
    with machine.workers() as workers:
        workers.start_gated({
            0: ("touch_file", machine.cpu(0), page(0), PAGES, ROUNDS, 1),
            1: ("touch_file", machine.cpu(1), page(0), PAGES, ROUNDS, 1),
            2: ("clean_file", machine.cpu(2), page(0), PAGES, ROUNDS),
        })  # fmt: skip
        assert workers.join() == {0: 0, 1: 0, 2: 0}
    assert machine.violations() == []
    assert machine.total(Event.PAGES_WRITTEN) > 0
    for index in range(PAGES):
        assert machine.on(0, "sys_pread", file, index << 12) == index + 1
    machine.close()
