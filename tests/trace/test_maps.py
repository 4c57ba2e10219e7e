# SPDX-License-Identifier: MIT
"""The format of /proc/PID/maps."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import Prot
from spfemu.trace.maps import Mapping, difference, parse, parse_line, text
from spfemu.trace.problems import Problems, TraceError

FILE = Mapping(0x1000, 0x3000, Prot.READ | Prot.EXEC, shared=False, offset=0x1000, name="/bin/x")


def test_a_map_of_this_process_is_written_as_it_was_read():
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines(keepends=True)
    problems = Problems("maps")
    users = [line for line in lines if "[vsyscall]" not in line]

    assert text(parse(lines, problems)) == "".join(users)
    assert problems.count == 0


MAPPINGS = st.builds(
    lambda first, pages, prot, shared, offset, name: Mapping(
        first * PAGE_SIZE, (first + pages) * PAGE_SIZE, prot, shared, offset * PAGE_SIZE, name
    ),
    st.integers(0, 1 << 34),
    st.integers(1, 1 << 20),
    st.integers(0, 7),
    st.booleans(),
    st.integers(0, 1 << 40),
    st.text(st.characters(blacklist_categories=["C", "Z"])) | st.just("/a b\nc"),
)


@given(MAPPINGS)
def test_what_is_written_is_read_again(mapping):
    assert parse(text([mapping]).splitlines(), Problems("t")) == (mapping,)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "00400000-00401000",
        "00401000-00400000 r-xp 00000000 00:00 0",
        "00400100-00401000 r-xp 00000000 00:00 0",
        "00400000-900000000000 r-xp 00000000 00:00 0",
        "00400000-00401000 rwzp 00000000 00:00 0",
        "00400000-00401000 r-xp ffffffffffffffff 00:00 0",
        "g0400000-00401000 r-xp 00000000 00:00 0",
    ],
)
def test_bad_lines(line):
    with pytest.raises(TraceError):
        parse_line(line)


def test_maps_differ_in_what_programs_see():
    anonymous = Mapping(0x1000, 0x3000, 3, shared=False)
    changed = Mapping(0x1000, 0x2000, 3, shared=False)

    assert not difference([anonymous], [Mapping(0x1000, 0x3000, 3, shared=False, name="[heap]")])
    assert difference([anonymous], [Mapping(0x1000, 0x3000, 3, shared=True)])
    assert difference([FILE], [Mapping(0x1000, 0x3000, 5, shared=False, offset=0, name="/bin/x")])
    assert difference([anonymous], [changed]).lines() == [f"+ {anonymous}", f"- {changed}"]
