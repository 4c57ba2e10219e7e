# SPDX-License-Identifier: MIT
"""How many frames a recording needs."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from spfemu.layout import PAGE_SIZE
from spfemu.replay.encoding import Step
from spfemu.replay.extent import frames_of, merged, pages_of, tables_of
from spfemu.trace.calls import Call

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda r: (r[0], r[0] + r[1]))
)


@given(RANGES)
def test_merged_ranges_cover_the_same_units(ranges):
    units = {at // 4 for start, end in ranges for at in range(start, end)}
    found = list(merged(ranges, 4))

    assert {at // 4 for start, end in found for at in range(start, end)} >= units
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))
    assert sum(end - start for start, end in found) <= 4 * (len(units) + len(ranges))


def test_pages_and_tables():
    assert pages_of([(0, 1), (4096, 8192), (4095, 4097)]) == 2
    assert tables_of([(0, PAGE_SIZE)]) == 3
    assert tables_of([(0, PAGE_SIZE), (1 << 21, (1 << 21) + 1)]) == 4
    assert tables_of([(0, PAGE_SIZE), (1 << 39, (1 << 39) + 1)]) == 6


def entry(kind, *words):
    return [int(kind), *words, *[0] * (7 - len(words))]


def test_what_is_mapped_at_the_same_place_again_counts_once():
    mmap = entry(Call.MMAP, 1 << 30, 1 << 20, 3, 0x32)

    assert frames_of([mmap], 16) == 16 + 3
    assert frames_of([mmap] * 1000, 16) == 16 + 3
    assert frames_of([mmap], 1000) == 256 + 3


def test_what_other_calls_touch():
    assert frames_of([entry(Call.MREMAP, 0x1000, 0x2000, 0x4000, 3, 1 << 30)], 16) == 4 + 3
    assert frames_of([entry(Call.BRK, 0x9000, 0x5000, 0x4000)], 16) == 4 + 3
    assert frames_of([entry(Call.MUNMAP, 0x9000, 0x5000)], 16) == 0
    assert frames_of([entry(Call.MLOCK, 0, 0x20000)], 2) == 32 + 3
    file = entry(Step.PLACE, 0x1000, 0x2000, 0, 1, 0, 1, 0)
    assert frames_of([file, file], 16) == 1 + 3 + 2 * 33
