# SPDX-License-Identifier: MIT
"""Readers of outside data are fed rubbish, and good data with changes: no reader crashes.

Hypothesis prints what reproduces a failure; ``--hypothesis-seed`` repeats a run.
"""

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import TARGETS

from spfemu import results
from spfemu.trace.strace import Reader

EXAMPLES = {"replayed": 40, "machine": 80, "trace_table": 100}
"""Of a run, where not 200: what takes longer."""


@st.composite
def changed(draw, seeds, words):
    """One of the seeds after some changes, or rubbish."""
    pieces = st.sampled_from(words) | st.binary(max_size=6) if words else st.binary(max_size=6)
    if not seeds or draw(st.integers(0, 5)) == 0:
        return b"".join(draw(st.lists(pieces, max_size=30)))
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        removed = draw(st.sampled_from([0, 0, 1, 2, 7, 40, len(data)]))
        data = data[:at] + draw(pieces) + data[at + removed :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_no_reader_crashes(name, build_report, scale_report, run_report):
    target = TARGETS[name]
    seeds = target.seeds
    if name == "report":
        seeds = tuple(map(results.encode, (scale_report, run_report)))

    @settings(
        deadline=None,
        max_examples=EXAMPLES.get(name, 200),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(changed(seeds, target.words))
    def feed(data):
        target.feed(data)

    for seed in seeds:
        target.feed(seed)
    feed()


def read(data):
    """Events and problems of a trace."""
    reader = Reader(io.BytesIO(data), "t")
    return list(reader), reader.problems


@pytest.mark.parametrize("seed", range(len(TARGETS["strace"].seeds)))
def test_what_stands_before_rubbish_is_read_all_the_same(seed):
    good = TARGETS["strace"].seeds[seed]
    expected, problems = read(good)
    assert expected

    @settings(deadline=None, max_examples=30)
    @given(changed((), TARGETS["strace"].words))
    def follow(rubbish):
        events, found = read(good + b"\n" + rubbish)
        assert events[: len(expected)] == expected
        assert found.kept[: problems.count] == problems.kept[: problems.count]
        assert all(p.line > good.count(b"\n") for p in found.kept[problems.count :])

    follow()
