# SPDX-License-Identifier: MIT
"""CSV is what will-it-scale's own tools read."""

import csv
import io
from pathlib import Path

import pytest

from spfemu.report import series, will_it_scale
from spfemu.report.paths import csv_paths, plot_paths

GOLDEN_THREADS = """\
tasks,processes,processes_idle,threads,threads_idle,linear
0,0,100,0,100,0
1,,,12000000,1.50,12000000
2,,,23900000,1.50,24000000
"""
GOLDEN_PROCESSES = """\
tasks,processes,processes_idle,threads,threads_idle,linear
0,0,100,0,100,0
1,9000000,,,,9000000
2,5000000,,,,18000000
"""


def curve(report, name):
    return next(c for c in series.group(report.results) if c.name == name)


def test_threads_are_written_as_in_the_golden_file(scale_report):
    assert will_it_scale.to_csv(curve(scale_report, "spf")) == GOLDEN_THREADS


def test_processes_fill_their_own_columns_and_unknown_idle_is_empty(build_point, build_report):
    points = [
        build_point("classic", n, rate, mode="processes", idle_percent=None)
        for n, rate in ((1, 9e6), (2, 5e6))
    ]
    assert will_it_scale.to_csv(curve(build_report(points), "classic")) == GOLDEN_PROCESSES


def test_every_row_has_every_column(scale_report):
    rows = list(csv.reader(io.StringIO(will_it_scale.to_csv(curve(scale_report, "host")))))
    assert {len(row) for row in rows} == {6}


def test_without_one_worker_there_is_no_linear(build_point, build_report):
    text = will_it_scale.to_csv(curve(build_report([build_point("spf", 2, 1e6)]), "spf"))
    assert text.splitlines()[-1] == "2,,,1000000,1.50,"


def test_points_with_more_workers_than_cores_are_left_out(build_point, build_report):
    points = [build_point("spf", 1, 1e6), build_point("spf", 4, 1e6, oversubscribed=True)]
    text = will_it_scale.to_csv(curve(build_report(points), "spf"))
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == ["0", "1"]


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        ("a.csv", ["spf"], {"spf": "a.csv"}),
        ("d/a.csv", ["spf", "host"], {"spf": "d/a-spf.csv", "host": "d/a-host.csv"}),
        ("a", ["spf", "host"], {"spf": "a-spf.csv", "host": "a-host.csv"}),
    ],
)
def test_each_curve_has_its_file(given, names, expected):
    assert csv_paths(given, names) == {name: Path(path) for name, path in expected.items()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("p", ["p.svg", "p.png"]), ("p.svg", ["p.svg"]), ("d/p.PNG", ["d/p.PNG"]),
     ("v1.2", ["v1.2.svg", "v1.2.png"])],
)  # fmt: skip
def test_a_plot_is_both_formats_unless_one_is_named(given, expected):
    assert plot_paths(given) == [Path(path) for path in expected]
