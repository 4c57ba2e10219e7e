# SPDX-License-Identifier: MIT
"""What one operation of each workload does, counted; and each workload under each protocol."""

import pytest
from operations import Operations

from spfemu.errors import UsageError
from spfemu.measure import build

PAGE = 4096
EIGHT = {"size": 8 * PAGE}
TINY = {
    "android_start": {"size": 4 * PAGE, "areas": 2, "pages": 2},
    "dontneed": {"size": 4 * PAGE, "areas": 2},
    "ebizzy": {"size": 4 * PAGE, "areas": 3},
    "ebizzy-heap": {"size": 4 * PAGE, "areas": 3},
    "fork1": {"size": 8 * PAGE, "pages": 3},
    "gup_fast": {"size": 8 * PAGE, "areas": 2, "pages": 2},
    "malloc1": {"size": 8 * PAGE, "pages": 3},
    "mixed": {"size": 8 * PAGE, "areas": 2, "pages": 2},
    "mprotect_storm": {"size": 4 * PAGE, "areas": 2, "pages": 2},
    "spf_test": {"areas": 3, "pages": 2},
}
FLUSHES = {
    "CALL_MMAP": 1,
    "CALL_MADVISE": 8,
    "CALL_MUNMAP": 1,
    "FAULT_READ": 8,
    "FAULT_WRITE": 8,
}
EXPECTED = {
    "android_start": {
        "CALL_MMAP": 12,
        "CALL_MPROTECT": 6,
        "CALL_MUNMAP": 6,
        "FAULT_READ": 2,
        "FAULT_WRITE": 12,
    },
    "brk1": {"CALL_BRK": 2},
    "brk2": {"CALL_BRK": 2},
    "dontneed": {"CALL_MADVISE": 1, "FAULT_WRITE": 4},
    "ebizzy": {"CALL_MMAP": 1, "CALL_MUNMAP": 1, "FAULT_WRITE": 4},
    "ebizzy-heap": {"CALL_MADVISE": 1, "FAULT_WRITE": 4},
    # each side copies what it is the first to write; the parent takes the rest over
    "fork1": {"CALL_FORK": 1, "FAULT_WRITE": 11},
    "malloc1": {"CALL_MMAP": 1, "CALL_MUNMAP": 1, "FAULT_WRITE": 3},
    "malloc2": {},
    "mixed": {"CALL_MADVISE": 1, "FAULT_WRITE": 2},
    "mmap1": {"CALL_MMAP": 1, "CALL_MUNMAP": 1},
    "mmap2": {"CALL_MMAP": 1, "CALL_MUNMAP": 1},
    "mprotect_storm": {"CALL_MPROTECT": 3, "CALL_MADVISE": 1, "FAULT_WRITE": 4},
    "page_fault1": {"CALL_MMAP": 1, "CALL_MUNMAP": 1, "FAULT_WRITE": 8},
    "page_fault1-read": {"CALL_MMAP": 1, "CALL_MUNMAP": 1, "FAULT_READ": 8},
    "page_fault2": {"CALL_MMAP": 1, "CALL_MUNMAP": 1, "FAULT_WRITE": 8},
    "page_fault3": {"CALL_MMAP": 1, "CALL_MUNMAP": 1, "FAULT_WRITE": 8},
    # one fault maps the pages around it too
    "page_fault4": {"CALL_MMAP": 1, "CALL_MUNMAP": 1, "FAULT_READ": 1},
    "pft": {"CALL_MADVISE": 1, "FAULT_WRITE": 8},
    "spf_test": {"CALL_MMAP": 3, "CALL_MUNMAP": 3, "FAULT_WRITE": 6},
    "tlb_flush1": FLUSHES,
    "tlb_flush2": FLUSHES,
    "tlb_flush3": FLUSHES,
}
RANDOM = ("gup_fast", "numa_remote")
"""Operations that are not all the same, by choice or by what scans did meanwhile."""
MONITORED = ("uffd_missing",)
"""Operations that wait for another process: tests/workloads/test_workloads.py."""
WARM = 4
"""Operations after which each area of a ring has been used."""


def tiny(workload):
    return TINY.get(workload, EIGHT)


def calls_and_faults(counted):
    """Leave out what an operation may do once in a while."""
    wanted = ("CALL_", "FAULT_READ", "FAULT_WRITE")
    return {name: n for name, n in counted.items() if n and name.startswith(wanted)}


def test_all_are_tested():
    assert sorted([*EXPECTED, *RANDOM, *MONITORED]) == sorted(build.workloads())


@pytest.mark.parametrize("workload", EXPECTED)
def test_an_operation_does_what_it_says(workload):
    operations = Operations(workload, **tiny(workload))
    operations.run(WARM)
    once = calls_and_faults(operations.run(1))
    assert once == EXPECTED[workload]
    thrice = calls_and_faults(operations.run(3))
    assert thrice == {name: 3 * n for name, n in once.items()}
    assert operations.violations() == []


def test_a_writer_does_all_calls():
    operations = Operations("mixed", writers=1, **tiny("mixed"))
    counted = operations.run(50, worker=1)
    for call in ("CALL_MMAP", "CALL_MUNMAP", "CALL_MPROTECT", "CALL_MADVISE"):
        assert counted[call] > 0
    assert operations.violations() == []


@pytest.mark.parametrize("protocol", sorted(set(build.protocols()) - {"spf"}))
@pytest.mark.parametrize("workload", sorted([*EXPECTED, *RANDOM]))
def test_under_each_protocol(workload, protocol):
    try:
        operations = Operations(workload, protocol, workers=2, **tiny(workload))
    except UsageError:
        assert protocol == "bare"
        return
    for worker in (0, 1, 0, 1):
        counted = operations.run(2, worker)
        assert counted["CALL_FAILED"] == 0
    assert operations.violations() == []
