# SPDX-License-Identifier: MIT
"""Tables: complete at any width, plain when piped."""

import io

import pytest
from msgspec.structs import replace

from spfemu import events, results
from spfemu.report import text
from spfemu.report.counters import COUNTERS


def lines(report):
    return [line.rstrip() for line in text.to_text(report).splitlines()]


def row(report, *words):
    """The words of the only line that begins with `words`."""
    (found,) = [w for w in map(str.split, lines(report)) if w[: len(words)] == list(words)]
    return found


def test_a_table_has_a_row_per_point(scale_report):
    assert row(scale_report, "classic", "2") == [
        "classic", "2", "5.00", "M", "4.75", "M", "to", "5.25", "M", "0.56", "-",
    ]  # fmt: skip
    assert row(scale_report, "spf", "1")[-3:] == ["1.00", "99.60", "%"]


def test_ratios_say_what_is_divided_by_what(scale_report):
    found = lines(scale_report)
    assert any(line.startswith(" spf / classic, 2 workers") for line in found)
    assert any(line.startswith(" spf, 2 / 1 worker ") for line in found)
    assert row(scale_report, "spf", "/", "classic,")[-4:] == ["4.78", "4.64", "to", "4.92"]


def test_conditions_and_finding_are_there(scale_report):
    found = lines(scale_report)
    assert found[0] == "page_fault1, threads, 16 MiB areas, 3 x 0.3 s, fault overhead 0 ns"
    assert found[-1] == "Spf scales and classic does not."
    assert "aborts of spf, 2 workers: PMD 3, PUD 1" in found


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_nothing_is_cut_off_at_any_width(scale_report, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", "200")
    wide = text.to_text(scale_report)
    monkeypatch.setenv("COLUMNS", columns)
    assert text.to_text(scale_report) == wide
    assert "…" not in wide


def test_tables_fit_eighty_columns(scale_report):
    tables = [line for line in lines(scale_report) if line.startswith(" ")]
    assert max(map(len, tables)) <= text.PLAIN_WIDTH


def test_piped_text_has_no_escapes_even_if_colour_is_forced(scale_report, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert "\x1b" not in text.to_text(scale_report)


def test_no_color_is_respected_on_a_terminal(scale_report, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    report = replace(scale_report, warnings=["careful"])
    coloured, plain = Terminal(), Terminal()
    text.print_report(report, coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    text.print_report(report, plain)
    assert "\x1b[33m" in coloured.getvalue()
    assert "\x1b[33m" not in plain.getvalue()


def test_ascii_output_works(scale_report):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    text.print_report(scale_report, output)
    output.flush()
    assert b"spf / classic" in output.buffer.getvalue()


def test_a_reader_that_is_gone_is_no_violation(scale_report):
    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        text.print_report(scale_report, Gone())


def test_a_single_point_shows_everything_that_it_has(run_report):
    found = "\n".join(lines(run_report))
    assert "2 workers, 1 writer" in found
    assert "p50 80, p90 100, p99 250, p99.9 900, max 12345 ns" in found
    assert "writer operations/s" in found
    # 72 M cycles over three samples of 0.3 s at 12 M faults/s
    assert "6.67 cycles, 13.33 instructions per fault" in found
    assert "all hold" in found


def test_absent_counters_are_absent_not_zero(build_point, build_report):
    found = "\n".join(lines(build_report([build_point("spf", 1, 1e6)])))
    assert "not available on this machine" in found


def test_what_must_not_be_believed_is_said(build_point, build_report):
    report = build_report(
        [build_point("spf", 1, 1e6, violations=["frame 3 is lost"])],
        partial=results.Partial(status=130, reason="interrupted"),
        inconclusive=["too noisy"],
        warnings=["busy"],
    )
    found = lines(report)
    assert "violation: frame 3 is lost" in found
    assert "partial: interrupted; only finished repeats count" in found
    assert "inconclusive: too noisy" in found
    assert "note: busy" in found


def test_points_with_more_workers_than_cores_are_marked(build_point, build_report):
    report = build_report(
        [build_point("spf", 1, 1e6), build_point("spf", 4, 1e6, oversubscribed=True)]
    )
    assert row(report, "spf", "4*")
    assert any("* more workers than cores" in line for line in lines(report))


def test_an_inconclusive_ratio_is_marked(scale_report):
    first = replace(scale_report.ratios[0], inconclusive="the machine changed")
    assert row(replace(scale_report, ratios=[first]), "classic,")[-1] == "inconclusive"


def test_every_counter_has_its_line():
    assert sorted(COUNTERS) == sorted(event.name for event in events.Event)
    assert all(line and "\n" not in line for line in COUNTERS.values())


def test_ratios_are_those_to_the_base(scale_report):
    beside = scale_report.ratios[-1]
    other = replace(beside, denominator=replace(beside.denominator, protocol="bare"))
    report = replace(scale_report, ratios=[*scale_report.ratios, other])
    assert "spf / bare, 2 workers" not in text.to_text(report)
    assert "spf / classic, 2 workers" in text.to_text(report)
    report = replace(report, base="bare")
    assert "spf / bare, 2 workers" in text.to_text(report)
    assert "spf / classic, 2 workers" not in text.to_text(report)
