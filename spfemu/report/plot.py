# SPDX-License-Identifier: MIT
"""The plot of `spfemu scale`: throughput against workers, and success without the mmap lock.

Curves differ in colour (Okabe and Ito's, told apart by the colour-blind), marker and dash, so
that the plot also works in grey.  The same report gives the same SVG, byte for byte.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from spfemu.report import numbers
from spfemu.report.paths import PLOT_FORMATS
from spfemu.report.series import (
    QUANTITIES,
    Series,
    attempts_of,
    group,
    quantity,
    rate_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spfemu.results import Report, Result

DPI = 150
_WIDTH_IN, _HEIGHT_IN = 10.0, 4.6


class Style(NamedTuple):
    """How a curve is drawn."""

    color: str
    marker: str
    dashes: str | tuple[int, tuple[int, ...]]


STYLES = {
    "classic": Style("#d55e00", "o", "-"),
    "spf": Style("#0072b2", "s", (0, (6, 2))),
    "bare": Style("#009e73", "^", (0, (3, 1, 1, 1))),
    "host": Style("#000000", "D", (0, (2, 2))),
}
"""A protocol looks the same in every plot."""
OTHER_STYLES = (
    Style("#cc79a7", "v", (0, (8, 2, 2, 2))),
    Style("#e69f00", "P", (0, (5, 1))),
    Style("#56b4e9", "X", (0, (4, 3))),
    Style("#8c564b", "<", (0, (1, 1))),
    Style("#7f7f7f", ">", (0, (7, 1, 1, 1))),
)

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "spfemu",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def draw(report: Report, image_format: str) -> bytes:
    """Return the plot as ``svg`` or ``png``.

    Raises ValueError for another format, and if the report has no result.
    """
    if image_format not in PLOT_FORMATS:
        raise ValueError(f"no format '{image_format}': {', '.join(PLOT_FORMATS)}")
    if not report.results:
        raise ValueError("there is nothing to plot")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = _figure(report)
        output = io.BytesIO()
        # a date would make each SVG another
        metadata = {"Date": None, "Creator": "spfemu"} if image_format == "svg" else {}
        figure.savefig(output, format=image_format, dpi=DPI, metadata=metadata)
    return output.getvalue()


def _figure(report: Report) -> Figure:
    curves = group(report.results)
    trying = [c for c in curves if any(attempts_of(p) is not None for p in c.points)]
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    FigureCanvasAgg(figure)
    if trying:
        throughput, success = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_success(success, trying, styles(curves))
    else:
        throughput = figure.subplots()
    _draw_throughput(throughput, curves, styles(curves), quantity(report))
    figure.suptitle(_title(report), fontsize=11)
    figure.supxlabel(_caption(report), fontsize=7.5, color="#555555")
    return figure


def styles(curves: list[Series]) -> dict[str, Style]:
    """Style of each curve."""
    others = [c.name for c in curves if c.name not in STYLES]
    chosen = {name: OTHER_STYLES[i % len(OTHER_STYLES)] for i, name in enumerate(others)}
    return STYLES | chosen


def _draw_throughput(
    axes: Axes, curves: list[Series], style: dict[str, Style], compared: str
) -> None:
    for curve in curves:
        _draw_linear(axes, curve, style[curve.name], compared)
        _draw_points(axes, curve, style[curve.name], compared)
    axes.set_ylabel(f"{QUANTITIES[compared]} per second")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: numbers.tick(value)))
    _workers_axis(axes, curves)
    axes.plot([], [], color="#888888", linewidth=1, linestyle=":", label="linear scaling")
    if any(curve.crowded for curve in curves):
        axes.plot(
            [], [], color="#888888", marker="o", fillstyle="none", linestyle="none",
            label="more workers than cores",
        )  # fmt: skip
    axes.legend(loc="best", fontsize=9)


def _draw_linear(axes: Axes, curve: Series, style: Style, compared: str) -> None:
    """Draw what the curve would be if each worker were as fast as the first alone."""
    one = curve.one_worker
    if one is None or len(curve.curve) < 2:
        return
    last = curve.curve[-1].workers
    base = rate_of(one, compared).median
    axes.plot([1, last], [base, base * last], color=style.color, linewidth=1, linestyle=":")


def _draw_points(axes: Axes, curve: Series, style: Style, compared: str) -> None:
    if curve.curve:
        axes.errorbar(
            [p.workers for p in curve.curve],
            [rate_of(p, compared).median for p in curve.curve],
            yerr=_spread(curve.curve, compared),
            label=_label(curve),
            color=style.color,
            marker=style.marker,
            linestyle=style.dashes,
            linewidth=1.6,
            capsize=3,
        )
    if curve.crowded:
        axes.errorbar(
            [p.workers for p in curve.crowded],
            [rate_of(p, compared).median for p in curve.crowded],
            yerr=_spread(curve.crowded, compared),
            label=None if curve.curve else _label(curve),
            color=style.color,
            marker=style.marker,
            fillstyle="none",
            linestyle="none",
            capsize=3,
        )


def _spread(points: tuple[Result, ...], compared: str) -> tuple[list[float], list[float]]:
    """Distances from the medians to the ends of their intervals."""
    rates = [rate_of(p, compared) for p in points]
    return [r.median - r.low for r in rates], [r.high - r.median for r in rates]


def _label(curve: Series) -> str:
    return "host: this machine's kernel" if curve.name == "host" else f"{curve.name}: emulated"


def _draw_success(axes: Axes, curves: list[Series], style: dict[str, Style]) -> None:
    for curve in curves:
        points = [(p.workers, attempts_of(p)) for p in curve.points]
        known = [(workers, 100 * tried.success) for workers, tried in points if tried is not None]
        axes.plot(
            [workers for workers, _ in known],
            [share for _, share in known],
            label=curve.name,
            color=style[curve.name].color,
            marker=style[curve.name].marker,
            linestyle=style[curve.name].dashes,
            linewidth=1.6,
        )
    axes.set_ylabel("attempts without the mmap lock that succeed [%]")
    axes.set_ylim(0, 105)
    _workers_axis(axes, curves)
    axes.legend(loc="lower left", fontsize=9)


def _workers_axis(axes: Axes, curves: list[Series]) -> None:
    counts = sorted({p.workers for curve in curves for p in curve.points})
    axes.set_xlabel("workers")
    axes.set_xlim(0, counts[-1] * 1.05 + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_minor_locator(NullLocator())


def _title(report: Report) -> str:
    first = report.results[0]
    words = [first.workload, first.mode, f"{numbers.size(first.size_bytes)} areas"]
    if first.writers:
        words.append(numbers.count(first.writers, "writer"))
    words.append(overhead(report))
    if report.inconclusive:
        words.append("INCONCLUSIVE")
    if report.partial:
        words.append("PARTIAL")
    return ", ".join(words)


def overhead(report: Report) -> str:
    """Say what was spun in every emulated fault."""
    emulated = next((r for r in report.results if r.target == "emulator"), None)
    if emulated is None:
        return "the real kernel only"
    source = " as on the host" if emulated.fault_overhead_from_host else ""
    return f"fault overhead {emulated.fault_overhead_ns:.0f} ns{source}"


def _caption(report: Report) -> str:
    where = report.environment
    first = report.results[0]
    engine = next((f"{r.engine} engine, " for r in report.results if r.target == "emulator"), "")
    return (
        f"{where.cpu_model or where.machine}, {numbers.count(where.cores, 'core')}, "
        f"{where.kernel}, spfemu {where.spfemu}, {engine}LLVM {where.llvm}\n"
        f"medians with 95 % intervals of {first.repeats} x {first.seconds:g} s, "
        f"seed {report.seed:#x}"
    )
