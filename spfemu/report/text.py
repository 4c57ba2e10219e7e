# SPDX-License-Identifier: MIT
"""Reports as text: colours on a terminal, plain when piped, never cut off."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import TextIO

from msgspec.structs import replace
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spfemu.report import numbers
from spfemu.report.series import (
    QUANTITIES,
    attempts_of,
    group,
    quantity,
    rate_of,
    series_name,
)
from spfemu.results import Estimate, Operand, Percentiles, Ratio, Report, Result
from spfemu.workloads.parameters import TRACE

PLAIN_WIDTH = 80
_LABEL_WIDTH = 20
_ENDLESS = 10_000


class ReportConsole(Console):
    """A console that leaves it to the command line what a reader that is gone means."""

    def on_broken_pipe(self) -> None:
        """Raise the error again: rich would exit with the status of a violation."""
        raise BrokenPipeError


def print_report(report: Report, file: TextIO | None = None, *, notes: bool = True) -> None:
    """Print what `run` or `scale` found; `notes` are the warnings."""
    print_parts(describe(report if notes else replace(report, warnings=[])), file)


def print_parts(parts: Iterable[Table | Text | str], file: TextIO | None = None) -> None:
    """Print tables and lines one after the other."""
    output = sys.stdout if file is None else file
    console = ReportConsole(file=output, highlight=False)
    for part in parts:
        if isinstance(part, Table):
            # as wide as it needs to be: a narrow terminal wraps, nothing is cut off
            endless = console.options.update(width=_ENDLESS)
            console.width = console.measure(part, options=endless).maximum
            console.print(part)
        else:
            console.print(part, soft_wrap=True)


def to_text(report: Report) -> str:
    """Return the plain text of `print_report`."""
    output = io.StringIO()
    print_report(report, output)
    return output.getvalue()


def describe(report: Report) -> list[Table | Text]:
    """Return what is printed, part by part."""
    parts: list[Table | Text] = []
    if len(report.results) == 1:
        parts.extend(_result(report.results[0]))
    elif report.results:
        parts.append(Text(_conditions(report)))
        parts.append(_points(report))
        parts.extend(_aborts(report))
    if report.ratios:
        parts.append(_ratios(report))
    parts.extend(_verdict(report))
    return parts


def _conditions(report: Report) -> str:
    """One line that says what all points have in common."""
    first = next((r for r in report.results if r.target == "emulator"), report.results[0])
    words = [first.workload, first.mode, *_size(first)]
    if first.writers:
        words.append(numbers.count(first.writers, "writer"))
    words.append(f"{_repeats(report)} x {first.seconds:g} s")
    words.append(_overhead(first))
    return ", ".join(words)


def _size(result: Result) -> list[str]:
    """Return how large areas are; a recording has none."""
    return [] if result.workload == TRACE else [f"{numbers.size(result.size_bytes)} areas"]


def _repeats(report: Report) -> str:
    """Samples per point: not the same for all if some were repeated."""
    least = min(r.repeats for r in report.results)
    most = max(r.repeats for r in report.results)
    return str(least) if least == most else f"{least} to {most}"


def _overhead(result: Result) -> str:
    if result.target == "host":
        return "real kernel"
    source = " as on the host" if result.fault_overhead_from_host else ""
    return f"fault overhead {result.fault_overhead_ns:.0f} ns{source}"


def _table(*columns: str) -> Table:
    """Return a table whose first two columns are names and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 1 else "right", no_wrap=True)
    return table


def _points(report: Report) -> Table:
    compared = quantity(report)
    rates = f"{QUANTITIES[compared]}/s"
    table = _table("kernel", "workers", rates, "95 % interval", "x 1 worker", "no mmap lock")
    for curve in group(report.results):
        one = curve.one_worker
        for point in curve.points:
            rate = rate_of(point, compared)
            attempts = attempts_of(point)
            table.add_row(
                curve.name,
                f"{point.workers}{'*' if point.oversubscribed else ''}",
                numbers.rate(rate.median),
                numbers.interval(rate.low, rate.high),
                _times(rate.median, None if one is None else rate_of(one, compared).median),
                "-" if attempts is None else numbers.percent(attempts.success),
            )
    if any(r.oversubscribed for r in report.results):
        table.caption = "* more workers than cores: no point of the curve"
        table.caption_justify = "left"
    return table


def _times(rate: float, base: float | None) -> str:
    return numbers.ratio(rate / base) if base else "-"


def _aborts(report: Report) -> list[Text]:
    """Say why attempts were aborted, for the point of each curve with the most workers."""
    lines = []
    for curve in group(report.results):
        attempts = attempts_of(curve.points[-1])
        if attempts is not None and attempts.reasons:
            workers = numbers.count(curve.points[-1].workers, "worker")
            lines.append(Text(f"aborts of {curve.name}, {workers}: {_counts(attempts.reasons)}"))
    return lines


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in reasons.items())


def _ratios(report: Report) -> Table:
    table = _table(f"ratio of {QUANTITIES[quantity(report)]}/s", "median", "95 % interval", "")
    for ratio in report.ratios:
        if not ratio.is_to(report.base):
            continue
        table.add_row(
            ratio_name(ratio),
            numbers.ratio(ratio.median),
            f"{numbers.ratio(ratio.low)} to {numbers.ratio(ratio.high)}",
            "inconclusive" if ratio.inconclusive else "",
        )
    return table


def ratio_name(ratio: Ratio) -> str:
    """Say what is divided by what, and what both have in common only once."""
    above, below = ratio.numerator, ratio.denominator
    name_above, name_below = _operand_name(above), _operand_name(below)
    if above.workers == below.workers:
        return f"{name_above} / {name_below}, {numbers.count(above.workers, 'worker')}"
    if name_above == name_below:
        return f"{name_above}, {above.workers} / {numbers.count(below.workers, 'worker')}"
    return f"{name_above}, {above.workers} / {name_below}, {below.workers} workers"


def _operand_name(operand: Operand) -> str:
    return operand.protocol or operand.target


def _verdict(report: Report) -> list[Text]:
    lines = [
        Text(f"violation: {v}", style="bold red") for r in report.results for v in r.violations
    ]
    lines += [Text(f"note: {warning}", style="yellow") for warning in report.warnings]
    if report.partial is not None:
        reason = report.partial.reason
        lines.append(Text(f"partial: {reason}; only finished repeats count", style="yellow"))
    lines += [Text(f"inconclusive: {reason}", style="yellow") for reason in report.inconclusive]
    if report.finding:
        lines.append(Text(report.finding, style="bold"))
    return lines


def _result(result: Result) -> list[Text]:
    """Describe a single point, one quantity per line."""
    lines = [Text(_headline(result), style="bold")]
    lines.append(_line("faults/s", _estimate(result.faults_per_second, result)))
    lines.append(_line("operations/s", _estimate(result.operations_per_second, result)))
    if result.writer_operations_per_second is not None:
        text = _estimate(result.writer_operations_per_second, result)
        lines.append(_line("writer operations/s", text))
    attempts = attempts_of(result)
    if attempts is not None:
        share = f"{numbers.percent(attempts.success)} of {attempts.count} attempts"
        lines.append(_line(attempts.how, share))
        if attempts.reasons:
            lines.append(_line("aborts", _counts(attempts.reasons)))
    if result.latency_ns is not None:
        lines += _latency("fault latency", result.latency_ns.faults)
        lines += _latency("writer latency", result.latency_ns.writers)
    lines.append(_line("hardware counters", _hardware(result)))
    if result.idle_percent is not None:
        lines.append(_line("CPUs idle", f"{result.idle_percent:.0f} %"))
    if result.target == "emulator":
        checks = numbers.count(len(result.violations), "violation")
        lines.append(_line("checks", checks if result.violations else "all hold"))
    return lines


def _headline(result: Result) -> str:
    words = [result.workload, series_name(result)]
    if result.target == "emulator":
        words.append(f"{result.engine} engine")
    words += [result.mode, numbers.count(result.workers, "worker")]
    if result.writers:
        words.append(numbers.count(result.writers, "writer"))
    words += _size(result)
    words.append(_overhead(result))
    return ", ".join(words)


def _line(label: str, text: str) -> Text:
    return Text(f"  {label:<{_LABEL_WIDTH}} {text}")


def _estimate(estimate: Estimate, result: Result) -> str:
    spread = numbers.interval(estimate.low, estimate.high)
    return f"{numbers.rate(estimate.median)}  ({spread}, {result.repeats} x {result.seconds:g} s)"


def _latency(label: str, latency: Percentiles | None) -> list[Text]:
    if latency is None:
        return []
    text = (
        f"p50 {latency.p50:.0f}, p90 {latency.p90:.0f}, p99 {latency.p99:.0f}, "
        f"p99.9 {latency.p99_9:.0f}, max {latency.max:.0f} ns"
    )
    return [_line(label, text)]


def _hardware(result: Result) -> str:
    if result.hardware is None:
        return "not available on this machine"
    names = ("cycles", "instructions", "cache_references", "cache_misses")
    totals = {name: [getattr(worker, name) for worker in result.hardware] for name in names}
    known = {name: sum(v) for name, v in totals.items() if v and None not in v}
    # counters run during the windows, events from the set-up to the end
    rates = result.faults_per_second.samples
    faults = sum(rates) * result.seconds
    if not known:
        return "not available on this machine"
    if not faults:
        return ", ".join(f"{numbers.rate(v)} {name}" for name, v in known.items())
    return ", ".join(f"{v / faults:.2f} {name}" for name, v in known.items()) + " per fault"
