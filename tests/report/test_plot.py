# SPDX-License-Identifier: MIT
"""The plot: the same bytes for the same report, and everything on it that has to be."""

import itertools
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
from msgspec.structs import replace

from spfemu.report import plot, series

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def as_text(monkeypatch):
    """Leave text in the SVG as text, so that it can be looked for."""
    monkeypatch.setitem(plot._SETTINGS, "svg.fonttype", "none")


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_same_report_gives_the_same_svg(scale_report):
    first = plot.draw(scale_report, "svg")
    mpl.rcParams["font.size"] = 30  # a user's own settings do not show
    try:
        assert plot.draw(scale_report, "svg") == first
        assert mpl.rcParams["font.size"] == 30
    finally:
        mpl.rcdefaults()


def test_both_formats_are_what_they_are_called(scale_report):
    assert plot.draw(scale_report, "png").startswith(PNG_MAGIC)
    assert ET.fromstring(plot.draw(scale_report, "svg")).tag.endswith("svg")


def test_it_says_what_was_measured_where(scale_report, as_text):
    found = " ".join(filter(None, texts(plot.draw(scale_report, "svg"))))
    for expected in (
        "page_fault1, threads, 16 MiB areas, fault overhead 0 ns",
        "classic: emulated",
        "spf: emulated",
        "host: this machine's kernel",
        "linear scaling",
        "attempts without the mmap lock that succeed",
        "Test CPU, 2 cores",
        "seed 0x2a",
    ):
        assert expected in found


def test_an_overhead_taken_from_the_host_is_named(scale_report, as_text):
    points = [
        replace(r, fault_overhead_ns=250.0, fault_overhead_from_host=True)
        for r in scale_report.results
    ]
    svg = plot.draw(replace(scale_report, results=points), "svg")
    assert any("fault overhead 250 ns as on the host" in (t or "") for t in texts(svg))


@pytest.mark.parametrize(
    ("changed", "word"), [({"partial": True}, "PARTIAL"), ({"inconclusive": ["noise"]}, "INCONCL")]
)
def test_what_must_not_be_believed_is_marked(scale_report, as_text, changed, word):
    svg = plot.draw(replace(scale_report, **changed), "svg")
    assert any(word in (t or "") for t in texts(svg))


def test_points_with_more_workers_than_cores_are_told_apart(build_point, build_report, as_text):
    points = [build_point("spf", 1, 1e6), build_point("spf", 4, 1e6, oversubscribed=True)]
    assert "more workers than cores" in texts(plot.draw(build_report(points), "svg"))


def test_without_speculation_there_is_one_panel(build_point, build_report, as_text):
    svg = plot.draw(build_report([build_point("classic", 1, 1e6)]), "svg")
    assert not any("succeed" in (t or "") for t in texts(svg))


def test_curves_differ_in_colour_marker_and_dashes(build_point):
    names = ["classic", "spf", "bare", "host", "mine", "other", "third"]
    chosen = plot.styles(series.group(build_point(n, 1, 1e6) for n in names))
    for a, b in itertools.combinations([chosen[n] for n in names], 2):
        assert a.color != b.color
        assert a.marker != b.marker
        assert a.dashes != b.dashes


def test_nothing_to_draw_and_unknown_formats_are_errors(scale_report, build_report):
    with pytest.raises(ValueError, match="nothing to plot"):
        plot.draw(build_report([]), "svg")
    with pytest.raises(ValueError, match="no format 'gif'"):
        plot.draw(scale_report, "gif")
