# SPDX-License-Identifier: MIT
"""The probe and what is made of it."""

import math
import os

import pytest

from spfemu.measure.probe import Probe, Prober, moved


def probes(*line_ns, clock=3.0):
    return [Probe(line, clock) for line in line_ns]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], False),
        (probes(30.0), False),
        (probes(30.0, 44.0), False),
        (probes(30.0, 46.0), True),
        (probes(46.0, 40.0, 30.0), True),
        (probes(None, None), False),
        (probes(math.inf), True),
        (probes(30.0) + probes(30.0, clock=1.9), True),
        (probes(30.0) + probes(30.0, clock=2.1), False),
        ([None, *probes(30.0)], False),
    ],
)
def test_moved_by_more_than_half(seen, expected):
    assert moved(seen, 1.5) is expected


def test_factor_is_the_callers():
    assert not moved(probes(30.0, 80.0), 3.0)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_probe_of_two_cores():
    with Prober() as prober:
        for _ in range(3):
            probe = prober.probe()
            assert probe.line_ns > 1  # or infinite, if a core was taken away
            assert 0.01 < probe.clock_ghz < 100


def test_one_cpu_has_no_line_to_move():
    with Prober(sorted(os.sched_getaffinity(0))[:1]) as prober:
        probe = prober.probe()
    assert probe.line_ns is None
    assert probe.clock_ghz > 0
