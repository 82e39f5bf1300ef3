"""Any chart of a result, drawn for a width."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from studfinder.records import Chart, Plot, Series
from studfinder.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    log_ticks,
    new_figure,
)
from studfinder.visible import visible

COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY, INK)
_BANDS = 3
"""Lines of a plot whose bands can be told apart."""
_FEW = 25
"""Points of a line that are marked."""
_LABEL, _TITLE = 24, 36
"""Letters of a line of a row's label and of a title on a phone."""


def draw_chart(chart: Chart, width: float) -> Figure:
    """A figure of all plots of a chart, its legend on top.

    Args:
        width: in CSS pixels; below 600 plots stand one below the other.
    """
    wide = width > 600
    heights = [_height(plot, wide) for plot in chart.plots]
    names = list(dict.fromkeys(series.name for plot in chart.plots for series in plot.series))
    columns = 3 if wide else 1
    above = 40 + 20 * -(-len(names) // columns)
    count = len(chart.plots)
    across = 1 if not wide else count if count < 4 else 2
    rows = [max(heights[first : first + across]) for first in range(0, count, across)]
    figure = new_figure(width, above + sum(rows))
    # One scale for all, if all have the same rows, or lines of the same quantity.
    alike = wide and len({(plot.rows, plot.y, plot.log) for plot in chart.plots}) == 1
    alike = alike and bool(chart.plots[0].rows or chart.plots[0].y)
    panels = figure.subplots(len(rows), across, squeeze=False, gridspec_kw={"height_ratios": rows}, sharey=alike).flat
    colours = _colours(chart, names)
    drawn = list(zip(panels, chart.plots, strict=False))
    for axes, plot in drawn:
        _draw(axes, plot, colours, wide)
    for place, (axes, plot) in enumerate(drawn):
        if plot.kind == "lines":
            _cut(axes, chart.plots if alike else [plot])
        if plot.log:
            log_ticks(axes.yaxis if plot.kind == "lines" else axes.xaxis, most=5)
        if alike and place % across:
            axes.set_ylabel("")
    for axes in panels[count:]:
        axes.set_axis_off()
    seen = dict(
        entry for axes in figure.axes for entry in zip(*reversed(axes.get_legend_handles_labels()), strict=True)
    )
    if len(seen) > 1 or chart.model:
        title = visible(chart.model) or None
        labels = [visible(name) for name in seen]
        figure.legend(seen.values(), labels, loc="outside upper left", ncols=columns, title=title, alignment="left")
    return figure


def _height(plot: Plot, wide: bool) -> float:
    if plot.kind == "lines":
        return 300.0
    each = max(1.0, 0.5 * len(plot.series))
    return 70 + (24 if wide else 30) * each * max(2, len(plot.rows))


def _colours(chart: Chart, names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and style of line by name, the same in all plots of a chart."""
    every = {series.name: series for plot in chart.plots for series in plot.series}
    own = [name for name in names if not every[name].quiet and every[name].like in ("", name)]
    looks = {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], ("-", "--")[i // len(COLOURS) % 2])
        for i, name in enumerate(own)
    }
    return {name: looks.get(name) or looks.get(every[name].like) or (GREY, MARKERS[-1], "-") for name in names}


def _draw(axes: Axes, plot: Plot, colours: dict[str, tuple[str, str, str]], wide: bool) -> None:
    if plot.kind == "lines":
        whole = [series for series in plot.series if not series.thin]
        for series in plot.series:
            beside = whole.index(series) + 1 if len(whole) > _BANDS and not series.thin else 0
            _line(axes, series, *colours[series.name], beside=beside, share=plot.percent)
        values: Any = axes.yaxis
        across, along = "axhline", "y"
        if plot.shaded is not None:
            axes.axvspan(*plot.shaded, color=ORANGE, alpha=0.13, linewidth=0)
        axes.xaxis.set_major_locator(
            MaxNLocator(8, steps=[1, 2, 5, 10], integer=all(x == int(x) for s in plot.series for x in s.x))
        )
    else:
        _rows(axes, plot, colours)
        labels = [visible(row) for row in plot.rows]
        axes.set_yticks(range(len(labels)), labels if wide else [fill(label, _LABEL) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        values, across, along = axes.xaxis, "axvline", "x"
    if plot.none is not None:
        getattr(axes, across)(plot.none, color=MUTED, linewidth=1)
    axes.set_xlabel(visible(plot.x))
    # A plot of lines without a name for its values has it as its title.
    axes.set_ylabel(fill(visible(plot.y or (plot.title if along == "y" else "")), _TITLE))
    if plot.title and (plot.y or along == "x"):
        axes.set_title(visible(plot.title) if wide else fill(visible(plot.title), _TITLE))
    axes.grid(axis="y" if along == "y" else "x")
    if plot.log_x:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, most=6)
        places = sorted({x for series in plot.series for x in series.x})
        if len(places) < 9:
            axes.set_xticks(places, [f"{x:,g}" for x in places])
    if plot.log:
        (axes.set_yscale if along == "y" else axes.set_xscale)("log")
    if plot.percent and not plot.log:
        values.set_major_formatter(PercentFormatter(1.0))
    elif along == "y" and not plot.log:
        values.set_major_formatter(lambda value, _: f"{value:,.6g}")
    elif along == "x" and not plot.log:
        values.set_major_locator(MaxNLocator(6 if wide else 4))


def _line(axes: Axes, series: Series, colour: str, marker: str, line: str, beside: int, share: bool) -> None:
    """A line with a band from low to high; where there are too many bands, the last interval as a bar."""
    found = np.array(series.points, dtype=float).reshape(-1, 3)
    good = np.isfinite(found[:, 0])
    if not good.any():
        return
    x, (value, low, high) = np.array(series.x)[good], found[good].T
    if share:  # a normal interval knows nothing of the ends
        low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
    style: Any = {"color": colour, "linestyle": ":" if series.dotted else line}
    if series.thin:
        axes.plot(x, value, linewidth=0.8, alpha=0.5, **style)
        return
    small: Any = {"marker": marker, "markersize": 4} if len(x) < _FEW else {}
    axes.plot(x, value, label=series.name, **style, **small)
    if not (high > low).any():
        return
    if beside:
        at = x[-1] + 0.012 * beside * (x[-1] - x[0] or 1)  # so that bars do not cover each other
        axes.plot([at, at], [low[-1], high[-1]], color=colour, linewidth=2, alpha=0.6)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _cut(axes: Axes, plots: Sequence[Plot]) -> None:
    """Let no interval that reaches far beyond every value, as those of three seeds do, squeeze the values of plots
    that share an axis."""
    plot = plots[0]
    values = np.array([p[0] for one in plots for series in one.series for p in series.points], dtype=float)
    values = values[np.isfinite(values) & ((values > 0) | (not plot.log))]
    if len(values) and values.max() > values.min():
        ends = np.log([values.min(), values.max()]) if plot.log else np.array([values.min(), values.max()])
        ends += 0.3 * (ends[1] - ends[0]) * np.array([-1, 1])
        low, high = np.exp(ends) if plot.log else ends
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, low), min(top, high))
    elif len(values) and not values.any():  # nothing was seen: no axis of negative numbers
        axes.set_ylim(0, 1)
    axes.set_ylim(bottom=plot.low)


def _rows(axes: Axes, plot: Plot, colours: dict[str, tuple[str, str, str]]) -> None:
    """Points with intervals, or bars; infinite ends end at the axis. Series stand side by side only where they would
    meet."""
    points = [np.array(series.points, dtype=float).reshape(-1, 3) for series in plot.series]
    step = 0.62 / len(points) if np.sum([np.isfinite(p[:, 0]) for p in points], axis=0).max(initial=0) > 1 else 0.0
    for place, (series, found) in enumerate(zip(plot.series, points, strict=True)):
        value, low, high = found.T
        y = np.arange(len(value)) + (place - (len(points) - 1) / 2) * step
        colour, marker, _ = colours[series.name]
        good = np.isfinite(value)
        if plot.kind == "bars":
            axes.barh(y[good], value[good], height=step or 0.6, color=colour, label=series.name)
            continue
        ends = np.nan_to_num(high, posinf=np.nanmax(value[good], initial=0.0))
        axes.hlines(y[good], low[good], ends[good], color=colour, linewidth=2)
        axes.plot(value[good], y[good], marker, color=colour, markersize=6, mew=0, label=series.name, linestyle="none")
